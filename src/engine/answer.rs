//! The text of an answer: an echo of the question and then some sentences about what answers, in whole words.
//!
//! A token is a word with the space before it. An answer has exactly as many tokens as were asked for.

use serde_json::{Value, json};

/// How many tokens an answer has if the client does not say.
const TOKENS: usize = 24;

/// The longest answer, however many tokens are asked for.
const LONGEST: usize = 100_000;

const SENTENCES: &str = "\
    This answer comes from the built-in stand-in engine: no model runs here, and the same question always gets the \
    same answer. A forebay is the pool of water in front of the turbines: it takes the river in, keeps it level, and \
    feeds each turbine what it can take. Every word is a token, and the usage below counts them. Ask with a larger \
    max_tokens for a longer answer, and with stream set to true to see it come word by word. The header x-engine tells \
    which engine answered; stop that engine, ask again, and another one will.";

/// What is said, what it cost, and why it ended.
pub(super) struct Answer {
    pub(super) prompt_tokens: usize,
    pub(super) tokens: Vec<String>,
    /// `length` if the client's limit ended it, else `stop`.
    pub(super) finish_reason: &'static str,
}

impl Answer {
    /// The answer to a question that came in a prompt of so many tokens.
    pub(super) fn to(question: &str, prompt_tokens: usize, max_tokens: Option<usize>) -> Self {
        let words = ["You", "said:"]
            .into_iter()
            .chain(question.split_whitespace())
            .chain(["—"])
            .chain(SENTENCES.split_whitespace().cycle());
        let tokens: Vec<String> = words
            .enumerate()
            .map(|(i, word)| if i == 0 { word.to_owned() } else { format!(" {word}") })
            .take(max_tokens.unwrap_or(TOKENS).min(LONGEST))
            .collect();
        let finish_reason = if max_tokens == Some(tokens.len()) { "length" } else { "stop" };
        Self { prompt_tokens, tokens, finish_reason }
    }

    /// The whole text.
    pub(super) fn text(&self) -> String {
        self.tokens.concat()
    }

    /// What is counted, in the words of OpenAI's completions.
    pub(super) fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens.len(),
            "total_tokens": self.prompt_tokens + self.tokens.len(),
        })
    }
}

/// The tokens of a text: its words.
pub(super) fn count(text: &str) -> usize {
    text.split_whitespace().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_exactly_the_tokens_asked_for() {
        for (question, max_tokens, tokens, finish_reason, start) in [
            ("hi", None, 24, "stop", "You said: hi — This answer comes"),
            ("", None, 24, "stop", "You said: — This"),
            ("hi", Some(1), 1, "length", "You"),
            ("a\n b", Some(4), 4, "length", "You said: a b"),
            ("hi", Some(2000), 2000, "length", "You said: hi — "),
            ("hi", Some(usize::MAX), LONGEST, "stop", "You said: hi — "),
        ] {
            let answer = Answer::to(question, 0, max_tokens);
            assert_eq!(answer.tokens.len(), tokens, "{question} {max_tokens:?}");
            assert_eq!(answer.finish_reason, finish_reason);
            assert!(answer.text().starts_with(start), "{}", answer.text());
            assert_eq!(count(&answer.text()), tokens, "words are tokens");
        }
    }
}
