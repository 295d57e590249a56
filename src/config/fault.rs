//! A mistake in the configuration: where it is, what is wrong, and what would be right.

use std::fmt;
use std::path::PathBuf;

/// One mistake in the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where it is; `None` where no text can be pointed at, such as for a file that cannot be read.
    pub place: Option<Place>,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A position in one of the configuration's files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// Which file this is in the order in which they were read.
    pub(super) order: usize,
}

/// Every mistake found, by file in the order they were read, then by position.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The mistakes, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<Fault>> for Faults {
    fn from(mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| {
            let place = fault.place.as_ref();
            place.map(|place| (place.order, place.line, place.column))
        });
        Faults(faults)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, column, .. } = self;
        write!(f, "{}:{line}:{column}", file.display())
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(order: usize, file: &str, line: usize, column: usize) -> Fault {
        let file = PathBuf::from(file);
        Fault { place: Some(Place { file, line, column, order }), message: "wrong".to_owned() }
    }

    #[test]
    fn faults_are_said_one_a_line_by_file_as_read_then_by_position() {
        let nowhere = Fault { place: None, message: "a.toml: cannot be read".to_owned() };
        let faults = Faults::from(vec![
            fault(1, "a", 1, 1),
            fault(0, "b", 10, 1),
            fault(0, "b", 9, 12),
            fault(0, "b", 9, 3),
            nowhere,
        ]);
        assert_eq!(
            faults.to_string(),
            "a.toml: cannot be read\nb:9:3: wrong\nb:9:12: wrong\nb:10:1: wrong\na:1:1: wrong"
        );
    }
}
