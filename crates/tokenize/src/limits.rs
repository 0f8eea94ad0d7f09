//! The truncation and padding that a tokenizer file asks for.

use serde::Deserialize;

use crate::error::{Result, TokenizeError};

/// At which end of a text ids are taken away or added.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    #[default]
    Right,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum Strategy {
    LongestFirst,
    OnlyFirst,
    OnlySecond,
}

/// `truncation` of a `tokenizer.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Truncation {
    #[serde(default)]
    pub(crate) direction: Side,
    pub(crate) max_length: usize,
    pub(crate) strategy: Strategy,
    pub(crate) stride: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) enum PaddingStrategy {
    BatchLongest,
    Fixed(usize),
}

/// `padding` of a `tokenizer.json`, as far as it touches ids.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Padding {
    strategy: PaddingStrategy,
    direction: Side,
    pad_to_multiple_of: Option<usize>,
    pad_id: u32,
}

/// What the file says about lengths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) truncation: Option<Truncation>,
    pub(crate) padding: Option<Padding>,
}

/// Longer padding than this is a mistake in the file, and would ask for gigabytes a text.
const MAX_PADDING: usize = 1 << 24;

impl Limits {
    /// Refuses what could only fail later. `added` is the number of ids that the pipeline puts around a text.
    pub(crate) fn check(&self, added: usize) -> Result<()> {
        if let Some(truncation) = &self.truncation {
            let max_length = truncation.max_length;
            if max_length < added {
                return Err(TokenizeError::malformed(format!(
                    "truncation.max_length is {max_length}, but the post-processor alone adds {added} tokens"
                )));
            }
            let room = max_length - added;
            if truncation.stride > 0 && truncation.stride >= room {
                return Err(TokenizeError::malformed(format!(
                    "truncation.stride is {}; it must be below the {room} tokens that truncation leaves to the text",
                    truncation.stride
                )));
            }
        }
        if let Some(padding) = &self.padding {
            let sizes = [if let PaddingStrategy::Fixed(size) = padding.strategy { size } else { 0 }];
            let multiple = padding.pad_to_multiple_of.unwrap_or(0);
            if let Some(size) = sizes.into_iter().chain([multiple]).find(|&size| size > MAX_PADDING) {
                return Err(TokenizeError::malformed(format!(
                    "padding asks for {size} tokens; at most {MAX_PADDING} are served"
                )));
            }
        }
        Ok(())
    }
}

impl Truncation {
    /// The most ids of the text itself that may stay.
    pub(crate) fn room(&self, added: usize) -> usize {
        self.max_length.saturating_sub(added)
    }

    /// Cuts the ids from `start` on to `room`.
    pub(crate) fn apply(&self, ids: &mut Vec<u32>, start: usize, room: usize) -> Result<()> {
        let length = ids.len() - start;
        if length <= room {
            return Ok(());
        }
        if self.strategy == Strategy::OnlySecond && self.max_length > 0 {
            return Err(TokenizeError::Pipeline {
                reason:
                    "the file's truncation strategy is OnlySecond, but there is one sequence only; count and \
                         fits leave truncation out, or change the strategy in the file"
                        .to_owned(),
            });
        }
        match self.direction {
            Side::Right => ids.truncate(start + room),
            Side::Left => drop(ids.drain(start..start + (length - room))),
        }
        Ok(())
    }
}

impl Padding {
    /// The length to which texts are padded when the longest of them has `longest` ids.
    pub(crate) fn target(&self, longest: usize) -> usize {
        let length = match self.strategy {
            PaddingStrategy::Fixed(size) => size,
            PaddingStrategy::BatchLongest => longest,
        };
        match self.pad_to_multiple_of {
            Some(multiple) if multiple > 0 => length.next_multiple_of(multiple),
            _ => length,
        }
    }

    /// Pads the ids from `start` on to at least `length`.
    pub(crate) fn apply(&self, ids: &mut Vec<u32>, start: usize, length: usize) {
        let missing = length.saturating_sub(ids.len() - start);
        let at = match self.direction {
            Side::Left => start,
            Side::Right => ids.len(),
        };
        ids.splice(at..at, std::iter::repeat_n(self.pad_id, missing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truncation(json: &str) -> Truncation {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn truncation_keeps_the_asked_end() {
        let right = truncation(r#"{"max_length": 4, "strategy": "LongestFirst", "stride": 0}"#);
        let left =
            truncation(r#"{"max_length": 4, "strategy": "OnlyFirst", "stride": 0, "direction": "Left"}"#);
        let mut ids = vec![9, 1, 2, 3, 4];
        right.apply(&mut ids, 1, right.room(1)).unwrap();
        assert_eq!(ids, [9, 1, 2, 3]);
        let mut ids = vec![9, 1, 2, 3, 4];
        left.apply(&mut ids, 1, left.room(2)).unwrap();
        assert_eq!(ids, [9, 3, 4]);
        let second = truncation(r#"{"max_length": 1, "strategy": "OnlySecond", "stride": 0}"#);
        assert!(matches!(second.apply(&mut ids, 0, 1), Err(TokenizeError::Pipeline { .. })));
    }

    #[test]
    fn padding_reaches_its_target_on_the_asked_side() {
        let padding = |json: &str| serde_json::from_str::<Padding>(json).unwrap();
        let fixed = padding(
            r#"{"strategy": {"Fixed": 3}, "direction": "Left", "pad_to_multiple_of": 4, "pad_id": 7}"#,
        );
        assert_eq!((fixed.target(1), fixed.target(9)), (4, 4));
        let mut ids = vec![1, 2, 3];
        fixed.apply(&mut ids, 1, 4);
        assert_eq!(ids, [1, 7, 7, 2, 3]);
        let longest = padding(
            r#"{"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0}"#,
        );
        assert_eq!(longest.target(5), 5);
        longest.apply(&mut ids, 0, 6);
        assert_eq!(ids, [1, 7, 7, 2, 3, 0]);
    }

    #[test]
    fn limits_that_can_only_fail_are_refused() {
        for json in [
            r#"{"max_length": 1, "strategy": "LongestFirst", "stride": 0}"#,
            r#"{"max_length": 6, "strategy": "LongestFirst", "stride": 4}"#,
        ] {
            let limits = Limits { truncation: Some(truncation(json)), padding: None };
            assert!(matches!(limits.check(2), Err(TokenizeError::Malformed { .. })), "{json}");
        }
    }
}
