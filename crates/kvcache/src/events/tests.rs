use super::*;
use crate::hash::ExtraKey;

fn text(text: &str) -> ExtraKey {
    ExtraKey::Text(text.to_owned())
}

fn hash(byte: u8) -> BlockHash {
    let mut hash = [byte; 32];
    hash[31] = byte.wrapping_add(1);
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Every kind of event, as the test in Python builds them too, by the classes of vLLM.
fn some_events() -> EventLog {
    let mut log = EventLog::new(1 << 20, 32);
    let keys = [
        Some(
            ExtraKeys::new(&[
                ExtraKey::Tuple(vec![text("lora"), text("german"), text("/adapters/german")]),
                ExtraKey::Tuple(vec![text("mm"), text("image"), ExtraKey::Integer(-3)]),
                ExtraKey::Tuple(vec![text("cache_salt"), text("tenant")]),
                ExtraKey::Tuple(vec![text("prompt_embeds"), ExtraKey::Bytes(vec![0xab; 32])]),
            ])
            .unwrap(),
        ),
        None,
    ];
    let name = Some(GroupName { kind: "full_attention", window: None });
    let stored = Stored {
        hashes: &[hash(1), hash(2)],
        parent: None,
        tokens: &[1, 200, 70_000, 5],
        block_size: 2,
        group: 0,
        name,
    };
    log.stored(&stored, |block| keys[block].as_ref());
    let name = Some(GroupName { kind: "sliding_window", window: Some(4096) });
    let tokens: Vec<u32> = (0..16).collect();
    let stored = Stored {
        hashes: &[hash(3)],
        parent: Some(&hash(2)),
        tokens: &tokens,
        block_size: 16,
        group: 1,
        name,
    };
    log.stored(&stored, |_| None);
    log.removed(&hash(1), 0);
    log.removed(&hash(2), 0);
    log.removed(&hash(3), 1);
    log
}

/// What `msgspec` writes for the same events by vLLM's classes.
#[test]
fn bytes_equal_those_of_vllm() {
    let expected = include_str!("vllm.hex").split_whitespace().collect::<Vec<_>>();
    for (form, expected) in [(HashForm::Integer, expected[0]), (HashForm::Bytes, expected[1])] {
        assert_eq!(hex(&some_events().drain_wire(1.5, Some(3), form)), expected);
    }
    let mut cleared = EventLog::new(1 << 20, 32);
    cleared.removed(&hash(1), 0);
    cleared.cleared();
    assert_eq!(hex(&cleared.drain_wire(2.5, None, HashForm::Bytes)), expected[2]);
}

#[test]
fn a_drain_empties() {
    let mut log = some_events();
    assert_eq!(log.len(), 4);
    let mut kinds = Vec::new();
    log.drain(|event| {
        kinds.push(match event {
            Event::Stored { hashes, tokens, .. } => (hashes.len(), tokens.len()),
            Event::Removed { hashes, .. } => (hashes.len(), 0),
            Event::Cleared => (0, 0),
        });
    });
    assert_eq!(kinds, [(2, 4), (1, 16), (2, 0), (1, 0)]);
    assert!(log.is_empty());
    log.drain(|_| panic!("nothing is left"));
    assert_eq!(hex(&log.drain_wire(0.0, None, HashForm::Bytes)), "93cb000000000000000090c0");
}

#[test]
fn a_log_that_nobody_drains_says_less_and_nothing_wrong() {
    let mut log = EventLog::new(2000, 32);
    for round in 0..1000_u32 {
        log.removed(&hash(round as u8), (round % 2) as u8);
        let bytes = size_of_val(&log.records[..]) + size_of_val(&log.hashes[..]);
        assert!(bytes <= 2000 + 1024 * 32);
    }
    assert!(log.lost() > 500);
    let mut first = None;
    log.drain(|event| {
        first.get_or_insert(event == Event::Cleared);
    });
    assert_eq!(first, Some(true));
}

#[test]
fn runs_of_one_group_stay_within_the_bound() {
    let mut log = EventLog::new(64 * 1024, 32);
    for _ in 0..100_000 {
        log.removed(&hash(1), 0);
        assert!(size_of_val(&log.hashes[..]) <= 64 * 1024 + 1024 * 32);
    }
}

#[test]
fn numbers_take_their_shortest_form() {
    let unsigned = |value| {
        let mut bytes = Vec::new();
        msgpack::push_unsigned(&mut bytes, value);
        hex(&bytes)
    };
    let cases = [
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (256, "cd0100"),
        (65536, "ce00010000"),
        (1 << 32, "cf0000000100000000"),
    ];
    for (value, expected) in cases {
        assert_eq!(unsigned(value), expected);
    }
    let negative = |value: i64| {
        let mut bytes = Vec::new();
        msgpack::push_negative(&mut bytes, (-1 - value) as u64);
        hex(&bytes)
    };
    let cases = [
        (-1, "ff"),
        (-32, "e0"),
        (-33, "d0df"),
        (-128, "d080"),
        (-129, "d1ff7f"),
        (-32769, "d2ffff7fff"),
        (i64::MIN, "d38000000000000000"),
    ];
    for (value, expected) in cases {
        assert_eq!(negative(value), expected);
    }
    let mut bytes = Vec::new();
    msgpack::push_array_head(&mut bytes, 16);
    msgpack::push_array_head(&mut bytes, 1 << 16);
    msgpack::push_text(&mut bytes, &[b'a'; 32]);
    assert_eq!(hex(&bytes[..10]), "dc0010dd00010000d920");
}

#[test]
fn keys_of_other_forms_are_written_as_they_are() {
    let keys = ExtraKeys::new(&[
        text("plain"),
        ExtraKey::Integer(7),
        ExtraKey::Tuple(vec![ExtraKey::Integer(1), ExtraKey::None, ExtraKey::Bool(true)]),
        ExtraKey::Tuple(Vec::new()),
        ExtraKey::Tuple(vec![text("alone")]),
    ])
    .unwrap();
    let mut bytes = Vec::new();
    keys::push_untagged(&mut bytes, keys.as_cbor());
    assert_eq!(hex(&bytes), "95a5706c61696e079301c0c39091a5616c6f6e65");
    let mut adapter = Vec::new();
    keys::push_adapter(&mut adapter, keys.as_cbor());
    assert!(adapter.is_empty());
}
