//! JSON, passed over one piece at a time and held against RFC 8259.
//!
//! No tree is built: whoever reads keeps what it needs. What may surprise:
//! - Half of a surrogate pair (`"\ud800"`) is refused. RFC 8259's grammar has it, but it is no text: some engines refuse
//!   it and others replace it, so two readers of one body could see two different prompts.
//! - Numbers are held against their grammar alone: `1e999` passes, and its size is the engine's affair.

use std::iter;
use std::ops::Range;

/// How deep brackets nest at most.
pub(crate) const DEEPEST: u32 = 128;
/// What is said where they nest deeper.
pub(crate) const TOO_DEEP: What = "brackets are nested more than 128 deep";

/// What is wrong at the place where a [`Cursor`] stopped.
pub(crate) type What = &'static str;

/// A place in a text, moved forward over one piece of JSON at a time.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    rest: &'a [u8],
}

// === impl Cursor ===

impl<'a> Cursor<'a> {
    /// At the beginning of a text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, rest: text.as_bytes() }
    }

    /// Passes a bracket that has just been opened if it closes at once; else there is a first member or element.
    pub(crate) fn any(&mut self, closing: u8) -> bool {
        self.skip_space();
        !self.take(closing)
    }

    /// Passes a member's name and its colon; where the name lies, without its quotes.
    pub(crate) fn name(&mut self) -> Result<Range<usize>, What> {
        self.skip_space();
        self.expect(b'"', "a member's name in double quotes is missing")?;
        let start = self.at();
        self.string()?;
        let end = self.at() - 1;
        self.skip_space();
        self.expect(b':', "a colon is missing")?;
        Ok(start..end)
    }

    /// Passes a value with all that is in it; where it lies.
    pub(crate) fn value(&mut self) -> Result<Range<usize>, What> {
        self.skip_space();
        let start = self.at();
        // The brackets open around the cursor, innermost lowest, an object's 1 and an array's 0, above them a 1 as a
        // mark: 127 levels, and the body's own object is one more.
        let mut open: u128 = 1;
        loop {
            self.skip_space();
            if let [bracket @ (b'{' | b'['), rest @ ..] = self.rest {
                if open.leading_zeros() == 0 {
                    return Err(TOO_DEEP);
                }
                let object = *bracket == b'{';
                open = open << 1 | u128::from(object);
                self.rest = rest;
                self.skip_space();
                if self.rest.first() != Some(&closing(object)) {
                    if object {
                        self.name()?;
                    }
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // Here a scalar has ended, or the bracket just opened is about to close.
            while open != 1 {
                let object = open & 1 == 1;
                if self.another(closing(object))? {
                    if object {
                        self.name()?;
                    }
                    break;
                }
                open >>= 1;
            }
            if open == 1 {
                return Ok(start..self.at());
            }
        }
    }

    /// Passes what must follow a member or an element: a comma, and there is another one, or the closing bracket.
    pub(crate) fn another(&mut self, closing: u8) -> Result<bool, What> {
        self.skip_space();
        if self.take(b',') {
            return Ok(true);
        }
        self.expect(closing, "a comma or the closing bracket is missing")?;
        Ok(false)
    }

    /// Passes a string, a number, `true`, `false` or `null`.
    // Forced in, with the two below: else the compiler calls them, and a body of numbers costs the scanner a fifth more.
    #[inline(always)]
    pub(crate) fn scalar(&mut self) -> Result<(), What> {
        match self.rest {
            [b'"', rest @ ..] => {
                self.rest = rest;
                self.string()
            }
            [b'-' | b'0'..=b'9', ..] => self.number(),
            _ => self.literal(),
        }
    }

    /// Passes a string from behind its opening quote to behind its closing one.
    fn string(&mut self) -> Result<(), What> {
        loop {
            self.rest = &self.rest[plain(self.rest)..];
            match self.rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    return Ok(());
                }
                [b'\\', ..] => {
                    let (_, length) =
                        escape(self.rest).ok_or("a string has an escape that is unknown or half a character")?;
                    self.rest = &self.rest[length..];
                }
                [_, ..] => return Err("a string has a control character that is not escaped"),
                [] => return Err("a string is not closed"),
            }
        }
    }

    #[inline(always)]
    fn number(&mut self) -> Result<(), What> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'-') {
                self.take(b'+');
            }
            self.digits()?;
        }
        Ok(())
    }

    #[inline(always)]
    fn digits(&mut self) -> Result<(), What> {
        let [b'0'..=b'9', ..] = self.rest else {
            return Err("a number lacks a digit");
        };
        while let [b'0'..=b'9', rest @ ..] = self.rest {
            self.rest = rest;
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<(), What> {
        let literals: [&[u8]; 3] = [b"true", b"false", b"null"];
        self.rest =
            literals.into_iter().find_map(|literal| self.rest.strip_prefix(literal)).ok_or("a value is missing")?;
        Ok(())
    }

    /// Passes white space.
    pub(crate) fn skip_space(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Passes `byte` if it is next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let Some(rest) = self.rest.strip_prefix(&[byte]) else {
            return false;
        };
        self.rest = rest;
        true
    }

    /// Passes `byte`, which must be next.
    pub(crate) fn expect(&mut self, byte: u8, otherwise: What) -> Result<(), What> {
        if self.take(byte) { Ok(()) } else { Err(otherwise) }
    }

    /// Passes the white space behind the only value of the text.
    pub(crate) fn end(&mut self) -> Result<(), What> {
        self.skip_space();
        if self.rest.is_empty() { Ok(()) } else { Err("something follows the object's end") }
    }

    /// The byte that is next.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// How many bytes have been passed.
    pub(crate) fn at(&self) -> usize {
        self.text.len() - self.rest.len()
    }
}

fn closing(object: bool) -> u8 {
    if object { b'}' } else { b']' }
}

/// How many bytes come before the first quote, backslash or control character.
fn plain(bytes: &[u8]) -> usize {
    /// One in each of eight bytes.
    const ONES: u64 = u64::MAX / 255;
    /// The top bit of each byte in which `word` is less than `limit` (at most 128). A borrow may set one too many, but
    /// only above a right one.
    fn less(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(ONES * u64::from(limit)) & !word & (ONES << 7)
    }
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = less(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = less(word ^ (ONES * u64::from(b'\\')), 1);
        let found = quote | backslash | less(word, b' ');
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let stop = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
    words.len() * 8 + stop.unwrap_or(tail.len())
}

/// The character that the escape at the front of `bytes` stands for, and the length of the escape.
pub(crate) fn escape(bytes: &[u8]) -> Option<(char, usize)> {
    let character = match bytes.get(1)? {
        b'u' => return unicode_escape(bytes),
        letter @ (b'"' | b'\\' | b'/') => char::from(*letter),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        _ => return None,
    };
    Some((character, 2))
}

/// As [`escape`], for `\uXXXX` alone or for two of them that are a surrogate pair.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let [b'\\', b'u', digits @ ..] = bytes.get(at..)?.first_chunk::<6>()? else {
            return None;
        };
        digits.iter().try_fold(0, |unit: u16, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
    };
    let first = unit(0)?;
    if let Some(character) = char::from_u32(first.into()) {
        return Some((character, 6));
    }
    let character = char::decode_utf16([first, unit(6)?]).next()?.ok()?;
    Some((character, 12))
}

/// The characters that the inside of a valid JSON string stands for.
pub(crate) fn decoded(inside: &str) -> impl Iterator<Item = char> {
    let mut rest = inside;
    iter::from_fn(move || {
        let (character, length) = match rest.chars().next()? {
            '\\' => escape(rest.as_bytes())?,
            plain => (plain, plain.len_utf8()),
        };
        rest = &rest[length..];
        Some(character)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

        #[test]
        fn eight_bytes_at_a_time_stop_where_one_at_a_time_does(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let stop = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
            prop_assert_eq!(plain(&bytes), bytes.iter().position(stop).unwrap_or(bytes.len()));
        }

        #[test]
        fn a_lone_stop_is_found_wherever_it_lies(length in 1_usize..40, place in any::<Index>(), filler in 0x23_u8..0x5c, stop in select(&b"\"\\\0\n\x1f"[..])) {
            let mut bytes = vec![filler; length];
            let at = place.index(length);
            bytes[at] = stop;
            prop_assert_eq!(plain(&bytes), at);
        }
    }
}
