use proptest::prelude::*;

use super::super::{ChatSource, ChatTemplate, Data, Now, Text, reasoning};

const NOW: Now = Now {
    year: 2026,
    month: 3,
    day: 9,
    hour: 1,
    minute: 2,
    second: 3,
    microsecond: 4,
    weekday: 0,
    day_of_year: 68,
};

/// Templates of which nothing is left to the engine, whatever the conversation, so long as all messages have texts.
const WHOLE: &[&str] = &[
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message.content + '\n' }}{% endfor %}end",
    "{{ bos_token }}{% set loop_messages = messages %}{% for m in loop_messages %}\
     {% set content = '[' + m['role'] + ']' + m['content'] | trim %}\
     {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
     {% if add_generation_prompt %}{{ 'assistant' ~ 1 ~ content }}{% endif %}",
    "{%- if messages and messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}\
     {%- set rest = messages[1:] -%}{%- else -%}{%- set system = 'none' -%}{%- set rest = messages -%}{%- endif -%}\
     {{ system }}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}!{% endif %}\
     {{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ m.content }}{% else %}nobody{% endfor %}",
    "{% set ns = namespace(last=messages|length - 1, found=false) %}{% for m in messages[::-1] %}\
     {% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{% set ns.last = loop.index0 %}{% endif %}\
     {% if ns.found %}{% break %}{% endif %}{% endfor %}{{ ns.last }}{{ ns.found }}{{ messages[:-1]|length }}",
    "{% for m in messages %}{% if m.content is string and '</think>' in m.content %}\
     {% set c = m.content.split('</think>')[-1].lstrip('\n') %}{% set r = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].strip() %}\
     {{ r ~ '|' ~ c }}{% elif m.content.startswith('a') or m.content.endswith(' ') %}{{ m.content.strip() }}\
     {% else %}{% continue %}{% endif %};{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{{ m.name is defined }}\
     {{ m.get('name', 'x') }}{{ m.missing }}{{ m.missing | default('d') }}{{ 'content' in m }}{{ 'tool_calls' in m }}{{ 'y' not in m.role }}{% endfor %}",
    "{% for m in messages %}{% for n in messages %}{% set x = n.role %}{% if x == m.role %}{{ x[:0]|length if false else 1 + 2 - 1 }}{% endif %}\
     {% endfor %}{{ x }}{{ x is defined }}{{ loop.index > 1 and loop.index <= 2 or 'no' }}{% endfor %}",
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}\
     {{ unknown }}{{ none }}{{ true }}{{ -3 }}{{ messages is iterable }}{{ messages is mapping }}{{ bos_token is none }}{{ tools is undefined }}\
     {{ none == none }}{{ unknown == none }}{{ 'a' == none }}{{ messages != 'a' }}{{ (messages|first).role if messages else '' }}\
     {{ (messages|last).content if messages|length > 0 }}{% macro shout(x) %}{{ x }}{% endmacro %}",
];

/// Templates with something for the engine: on the way, in a branch, or an error.
const PARTLY: &[&str] = &[
    "{% macro shout(x) %}{{ x|upper }}{% endmacro %}{% for m in messages %}{{ shout(m.role) }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ m.content|upper }}{% endfor %}{{ messages }}",
    "{% set content %}a{{ messages|length }}{% endset %}{{ content }}",
    "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }}{% endfor %}{{ m.role.title() }}{% endfor %}",
    "{{ messages[7].role }}{{ messages[0].content[0] }}",
    "{{ 1 + messages }}",
    "{{ 1.5 }}{{ 1 == true }}{{ messages == messages }}{{ range(3)|join('-') }}{{ loop }}",
    "{% for m in messages %}{{ loop.index }}{{ m.content|length }}{{ m['content'][1:] }}{% endfor %}{{ loop }}",
    "{% for m in messages %}{{ loop.previtem.role }}{{ loop.cycle('a', 'b') }}{% endfor %}{{ -messages|length }}{{ 7 % -2 }}",
    "{% for a in messages %}{% for b in messages %}{% for c in messages %}{{ b.content * 3 }}{{ a.f }}{% endfor %}{% endfor %}{% endfor %}",
];

fn template(source: &str) -> ChatTemplate {
    let special_tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
    ChatTemplate::of(&ChatSource { template: source.to_owned(), tool_template: None, special_tokens })
        .unwrap()
}

fn direct(template: &ChatTemplate, variables: &[(String, Data)]) -> Option<String> {
    let messages = variables.iter().rev().find(|(name, _)| name == "messages");
    let messages = messages.map(|(_, data)| reasoning::named(data));
    template.direct.first()?.1.render(messages.as_deref(), variables, &template.special_tokens, Some(NOW))
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        prop::sample::select(
            &["", " a ", "a", "\n<think>\nx\n</think>\n\ny", "</think>", "<think>", "é\u{1c}", "y ", "'\"\\"]
                [..]
        )
        .prop_map(Text::from),
        any::<String>().prop_map(Text::from),
    ]
}

fn anything() -> impl Strategy<Value = Data> {
    let leaf = prop_oneof![
        Just(Data::None),
        any::<bool>().prop_map(Data::Bool),
        any::<i64>().prop_map(|number| Data::Integer(number.into())),
        Just(Data::Integer(i128::MAX)),
        Just(Data::Float(0.5)),
        text().prop_map(Data::Text),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Data::List),
            prop::collection::vec((text(), inner), 0..3).prop_map(Data::Dict),
        ]
    })
}

fn message(content: impl Strategy<Value = Data>) -> impl Strategy<Value = Data> {
    let role = prop::sample::select(&["system", "user", "assistant", "tool"][..]);
    let other = prop::option::of((prop::sample::select(&["name", "f", "reasoning", "role"][..]), text()));
    (role, content, other).prop_map(|(role, content, other)| {
        let mut entries = vec![("role".into(), Data::Text(role.into())), ("content".into(), content)];
        entries.extend(other.map(|(key, value)| (key.into(), Data::Text(value))));
        Data::Dict(entries)
    })
}

fn conversation(messages: impl Strategy<Value = Vec<Data>>) -> impl Strategy<Value = Vec<(String, Data)>> {
    (messages, any::<bool>()).prop_map(|(messages, prompt)| {
        vec![
            ("messages".to_owned(), Data::List(messages)),
            ("add_generation_prompt".to_owned(), Data::Bool(prompt)),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_run_directly_is_what_the_engine_gives(
        variables in conversation(prop::collection::vec(message(text().prop_map(Data::Text)), 0..6)),
    ) {
        for source in WHOLE {
            let template = template(source);
            let engine = template.render_by_engine(&variables, Some(NOW)).unwrap();
            let whole = direct(&template, &variables);
            prop_assert_eq!(whole.as_deref(), Some(engine.as_str()), "{}", source);
        }
    }

    #[test]
    fn whatever_comes_out_is_what_the_engine_gives(
        variables in conversation(prop::collection::vec(
            prop_oneof![3 => message(anything()), 1 => anything()], 0..4,
        )),
        replaced in prop::option::of(anything()),
    ) {
        let mut variables = variables;
        variables.extend(replaced.map(|data| ("messages".to_owned(), data)));
        for source in WHOLE.iter().chain(PARTLY) {
            let template = template(source);
            if let Some(prompt) = direct(&template, &variables) {
                let engine = template.render_by_engine(&variables, Some(NOW));
                prop_assert_eq!(engine.ok(), Some(prompt), "{}", source);
            }
        }
    }
}

#[test]
fn what_takes_too_long_is_left_to_the_engine() {
    let source = "{% set ns = namespace(x='ab') %}{% for m in messages %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}";
    let messages = |count| vec![("messages".to_owned(), Data::List(vec![Data::None; count]))];
    assert_eq!(direct(&template(source), &messages(3)).as_deref(), Some("16"));
    assert_eq!(direct(&template(source), &messages(40)), None);
    let nested = "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}";
    assert_eq!(direct(&template(nested), &messages(10)).as_deref(), Some(""));
    assert_eq!(direct(&template(nested), &messages(400)), None);
}

#[test]
fn each_template_with_something_for_the_engine_meets_it() {
    let messages = ["tool", "user"].map(|role| {
        Data::Dict(vec![
            ("role".into(), Data::Text(role.into())),
            ("content".into(), Data::Text("ab".into())),
        ])
    });
    let variables = vec![("messages".to_owned(), Data::List(messages.to_vec()))];
    for source in PARTLY {
        assert_eq!(direct(&template(source), &variables), None, "{source}");
    }
}
