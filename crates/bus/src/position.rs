//! Where an entry stands in its topic.

use std::fmt;
use std::str::FromStr;

/// The place of an entry: milliseconds and a count within them, compared as numbers.
///
/// Its text form is the stream id of Redis. As text two of them would not sort (`9-0` after
/// `10-0`), which is why this is a pair of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Unix milliseconds on the clock of the backend.
    pub millis: u64,
    /// Counts entries of the same millisecond.
    pub seq: u64,
}

impl Position {
    /// Before every entry.
    pub const START: Self = Self { millis: 0, seq: 0 };

    /// The smallest position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self {
                millis: self.millis,
                seq,
            },
            None => Self {
                millis: self.millis.saturating_add(1),
                seq: 0,
            },
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.seq)
    }
}

/// The text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is two numbers with a dash between them, such as 1779364800000-0")]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (millis, seq) = text.split_once('-').ok_or(PositionError)?;
        let number = |text: &str| text.parse().map_err(|_| PositionError);
        Ok(Self {
            millis: number(millis)?,
            seq: number(seq)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_compare_as_numbers_not_as_text() {
        let at = |text: &str| text.parse::<Position>().unwrap();
        assert!(at("9-0") < at("10-0"));
        assert!(at("10-9") < at("10-10"));
        assert!(at("10-10").next() == at("10-11"));
        assert_eq!(at("1779364800000-7").to_string(), "1779364800000-7");
        for bad in ["", "1", "a-1", "1-", "1-2-3", "-1-2"] {
            assert_eq!(bad.parse::<Position>(), Err(PositionError), "{bad}");
        }
    }
}
