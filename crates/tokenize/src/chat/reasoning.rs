//! The names under which messages carry a model's reasoning.
//!
//! Servers and templates disagree about it. As `transformers` does since version 5, what stands under any of the
//! names is shown to the template under the two that templates read.

use std::borrow::Cow;

use super::Data;

/// In the order in which they are preferred.
const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// These messages with their reasoning under all names that templates read.
pub(super) fn named(messages: &Data) -> Cow<'_, Data> {
    let Data::List(list) = messages else { return Cow::Borrowed(messages) };
    if list.iter().all(|message| reasoning(message).is_none()) {
        return Cow::Borrowed(messages);
    }
    let message = |message: &Data| match (message, reasoning(message)) {
        (Data::Dict(entries), Some(reasoning)) => {
            // The last of equal keys counts, in the place of the first.
            let mut all = vec![("thinking".into(), reasoning.clone())];
            all.extend_from_slice(entries);
            all.push((NAMES[0].into(), reasoning.clone()));
            Data::Dict(all)
        }
        _ => message.clone(),
    };
    Cow::Owned(Data::List(list.iter().map(message).collect()))
}

fn reasoning(message: &Data) -> Option<&Data> {
    let Data::Dict(entries) = message else { return None };
    let under = |name: &&str| entries.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
    NAMES.iter().find_map(|name| under(name).filter(|value| **value != Data::None))
}
