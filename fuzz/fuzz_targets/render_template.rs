//! Any template and any conversation: a prompt or an error, twice the same, and an end in bounded time.
#![no_main]

use infer_accel_tokenize::chat::{ChatSource, ChatTemplate, Conversation, Data};
use infer_accel_tokenize::{EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_bytes(include_bytes!("small.tokenizer.json")).expect("a good file")
});

fn message(role: &str, content: &str) -> Data {
    let text = |text: &str| Data::Text(text.into());
    Data::Dict(vec![("role".into(), text(role)), ("content".into(), text(content))])
}

fuzz_target!(|parts: (&str, &str, &str)| {
    let (template, role, content) = parts;
    let source = ChatSource { template: template.to_owned(), ..ChatSource::default() };
    let Ok(template) = ChatTemplate::of(&source) else { return };
    let messages = Data::List(vec![message(role, content), message("assistant", role)]);
    let variables = vec![("messages".to_owned(), messages)];
    let rendered = template.render(&variables, None);
    assert_eq!(rendered.as_ref().ok(), template.render_by_engine(&variables, None).as_ref().ok());
    let Ok(prompt) = rendered else { return };
    for trusted in [true, false] {
        let conversation = Conversation { variables: variables.clone(), now: None, trusted };
        let Ok(ids) = template.encode(&TOKENIZER, &conversation) else { continue };
        assert_eq!(template.count(&TOKENIZER, &conversation).ok(), Some(ids.len()));
        if trusted {
            let options = EncodeOptions { add_special_tokens: false, parse_special: true };
            assert_eq!(TOKENIZER.encode(&prompt, options).ok(), Some(ids));
        }
    }
});
