//! Vectors, what must not open, properties, and the root key's file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use zeroize::Zeroizing;

use super::envelope::{frame, seal_plain};
use super::*;

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

fn kind(name: &str) -> Kind {
    match name {
        "body" => Kind::Body,
        "header" => Kind::Header,
        "audit_event" => Kind::AuditEvent,
        "wrapped_key" => Kind::WrappedKey,
        "name" => Kind::Name,
        "grant" => Kind::Grant,
        "page_token" => Kind::PageToken,
        "root_check" => Kind::RootCheck,
        _ => panic!("{name}"),
    }
}

struct Vector {
    name: String,
    key: Key,
    key_id: KeyId,
    salt: [u8; 24],
    address: Address,
    clear: Vec<u8>,
    reproducible: bool,
    envelope: Vec<u8>,
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn envelopes() -> Vec<Vector> {
    let vectors = vectors();
    let read = |v: &Value| {
        let a = &v["address"];
        Vector {
            name: v["name"].as_str().unwrap().into(),
            key: Key::from_bytes(&bytes(&v["key"])),
            key_id: bytes(&v["key_id"]),
            salt: bytes(&v["salt"]),
            address: Address {
                kind: kind(a["kind"].as_str().unwrap()),
                op: a["op"].as_u64().unwrap() as u8,
                tenant: bytes(&a["tenant"]),
                chart: bytes(&a["chart"]),
                record_type: bytes(&a["record_type"]),
                record: bytes(&a["record"]),
                write_id: bytes(&a["write_id"]),
                part: a["part"].as_u64().unwrap() as u32,
                last: a["last"].as_bool().unwrap(),
            },
            clear: hex::decode(v["clear"].as_str().unwrap()).unwrap(),
            reproducible: v["compression"] == "none",
            envelope: hex::decode(v["envelope"].as_str().unwrap()).unwrap(),
        }
    };
    vectors["envelopes"].as_array().unwrap().iter().map(read).collect()
}

#[test]
fn reproduces_the_vectors() {
    for v in envelopes() {
        if v.reproducible {
            let plain = frame(&v.clear, Compression::None).unwrap();
            let sealed = seal_plain(&v.key, &v.key_id, &v.salt, &v.address, plain);
            assert_eq!(hex::encode(&sealed.0), hex::encode(&v.envelope), "{}", v.name);
        }
        assert_eq!(open(&v.key, &v.address, &v.envelope).unwrap().expose(), v.clear, "{}", v.name);
        assert_eq!(key_id_of(&v.envelope).unwrap(), v.key_id, "{}", v.name);
        assert_eq!(v.key.id(), v.key_id, "{}", v.name);
    }
}

#[test]
fn reproduces_the_tokens() {
    let v = &vectors()["tokens"];
    let text = |name: &str| v[name].as_str().unwrap();
    let secret = Key::from_bytes(&bytes(&v["address_secret"]));
    let keys = TenantKeys::new([0; 16], Key::generate(), Key::generate(), secret);
    let chart = keys.chart_token(v["chart_kind"].as_u64().unwrap() as u8, text("chart_id"));
    let root = RootKey::new(Key::from_bytes(&bytes(&v["root_key"])));
    assert_eq!(chart, bytes(&v["chart"]));
    assert_eq!(u64::from(keys.slot(&chart)), v["slot"].as_u64().unwrap());
    assert_eq!(keys.type_token(&chart, text("record_type")), bytes(&v["type_token"]));
    assert_eq!(keys.record_token(&chart, text("record_type"), text("record_id")), bytes(&v["record_token"]));
    assert_eq!(keys.principal_token(text("principal")), bytes(&v["principal_token"]));
    assert_eq!(keys.fingerprint(&hex::decode(text("canonical")).unwrap()), bytes(&v["fingerprint"]));
    assert_eq!(root.principal_token(text("principal")), bytes(&v["operator_token"]));
    let term = keys.term_token(text("term_system"), text("term_value"));
    assert_eq!(term, bytes(&v["term_token"]));
    assert_eq!(u64::from(keys.term_slot(&term)), v["term_slot"].as_u64().unwrap());
}

/// Every address that differs from `a` in one field; of the wide ones, in the first and in the last bit.
fn other_addresses(a: &Address) -> Vec<Address> {
    let mut others = Vec::new();
    let mut change = |apply: &dyn Fn(&mut Address)| {
        let mut other = *a;
        apply(&mut other);
        others.push(other);
    };
    for kind in 1..=8 {
        let kinds =
            [Kind::Body, Kind::Header, Kind::AuditEvent, Kind::WrappedKey, Kind::Name, Kind::Grant, Kind::PageToken];
        change(&|o| o.kind = *kinds.get(kind - 1).unwrap_or(&Kind::RootCheck));
    }
    change(&|o| o.op ^= 1);
    change(&|o| o.op ^= 0x80);
    for (at, bit) in [(0, 0x80), (15, 1)] {
        change(&|o| o.tenant[at] ^= bit);
        change(&|o| o.chart[at] ^= bit);
        change(&|o| o.record_type[at] ^= bit);
        change(&|o| o.record[at] ^= bit);
        change(&|o| o.write_id[at + at / 15 * 2] ^= bit);
    }
    change(&|o| std::mem::swap(&mut o.record_type, &mut o.record));
    change(&|o| o.part ^= 1);
    change(&|o| o.part ^= 1 << 31);
    change(&|o| o.last = !o.last);
    others.retain(|other| other != a);
    others
}

#[test]
fn opens_at_no_other_address_and_under_no_other_key() {
    for v in envelopes() {
        let others = other_addresses(&v.address);
        assert!(others.len() >= 21, "{}", v.name);
        for other in others {
            assert_eq!(open(&v.key, &other, &v.envelope).unwrap_err(), OpenError::Unauthentic, "{}", v.name);
        }
        assert_eq!(open(&Key::generate(), &v.address, &v.envelope).unwrap_err(), OpenError::Unauthentic);
    }
}

#[test]
fn opens_with_no_bit_changed() {
    for v in envelopes() {
        for at in 0..v.envelope.len() {
            let mut changed = v.envelope.clone();
            changed[at] ^= 1 << (at % 8);
            let expected = if at < 2 { OpenError::UnknownVersion } else { OpenError::Unauthentic };
            assert_eq!(open(&v.key, &v.address, &changed).unwrap_err(), expected, "{} at {at}", v.name);
        }
    }
}

#[test]
fn opens_neither_cut_nor_lengthened() {
    for v in envelopes() {
        for len in 0..v.envelope.len() {
            // 87 bytes are the shortest envelope.
            let expected = if len < 87 { OpenError::Malformed } else { OpenError::Unauthentic };
            assert_eq!(open(&v.key, &v.address, &v.envelope[..len]).unwrap_err(), expected, "{} to {len}", v.name);
        }
        let longer = [&v.envelope[..], &[0]].concat();
        assert_eq!(open(&v.key, &v.address, &longer).unwrap_err(), OpenError::Unauthentic);
    }
    let huge = vec![1; ENVELOPE_LEN_MAX + 1];
    assert_eq!(open(&Key::generate(), &Address::of(Kind::Body), &huge).unwrap_err(), OpenError::Malformed);
}

/// A byte string that two keys decrypt to something is GCM's own weakness: the commitment is what refuses it.
#[test]
fn refuses_a_commitment_of_another_key() {
    let v = &envelopes()[1];
    let plain = frame(&v.clear, Compression::None).unwrap();
    let other = seal_plain(&Key::generate(), &v.key_id, &v.salt, &v.address, plain);
    let mut mixed = v.envelope.clone();
    mixed[34..66].copy_from_slice(&other.0[34..66]);
    assert_eq!(open(&v.key, &v.address, &mixed).unwrap_err(), OpenError::Unauthentic);
}

#[test]
fn refuses_authentic_but_malformed_plain_bytes() {
    let frame_of = |compression: u8, len: u32, data: &[u8], padded: usize| {
        let mut plain = [&[compression][..], &len.to_be_bytes(), data].concat();
        plain.resize(padded, 0);
        plain
    };
    let text = [b'a'; 200];
    let zstd = zstd::bulk::compress(&text, 1).unwrap();
    let n = zstd.len();
    let without_size = zstd::encode_all(&text[..], 1).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; CLEAR_LEN_MAX + 1], 1).unwrap();
    let mut too_little = zstd.clone();
    // Frame_Content_Size, one byte when below 256: see RFC 8878, 3.1.1.1.
    too_little[5] -= 1;
    assert_eq!((zstd::decompressed_size(&without_size), zstd::decompressed_size(&too_little)), (None, Some(199)));
    let padded = |data: &[u8]| super::padme::padded_len(5 + data.len());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("compression unknown", frame_of(2, 3, b"abc", 8)),
        ("length past the end", frame_of(0, 4, b"abc", 8)),
        ("length absurd", frame_of(0, u32::MAX, b"abc", 8)),
        ("padding not zero", [frame_of(0, 4, b"abcd", 9), vec![1]].concat()),
        ("padding too long", frame_of(0, 3, b"abc", 9)),
        ("padding missing", frame_of(0, 4, b"abcd", 9)),
        ("zstd of nothing", frame_of(1, 0, b"", 5)),
        ("zstd of noise", frame_of(1, 3, b"abc", 8)),
        ("zstd cut", frame_of(1, n as u32 - 1, &zstd[..n - 1], padded(&zstd[..n - 1]))),
        ("zstd without a size", frame_of(1, without_size.len() as u32, &without_size, padded(&without_size))),
        ("zstd larger than it says", frame_of(1, n as u32, &too_little, padded(&zstd))),
        ("zstd twice", frame_of(1, 2 * n as u32, &[&zstd[..], &zstd].concat(), padded(&[&zstd[..], &zstd].concat()))),
        ("zstd bomb", frame_of(1, bomb.len() as u32, &bomb, padded(&bomb))),
    ];
    let key = Key::generate();
    let address = Address::of(Kind::Body);
    for (name, plain) in cases {
        let sealed = seal_plain(&key, &key.id(), &[0; 24], &address, Zeroizing::new(plain));
        assert_eq!(open(&key, &address, &sealed.0).unwrap_err(), OpenError::Malformed, "{name}");
    }
    let good = frame_of(1, n as u32, &zstd, padded(&zstd));
    let sealed = seal_plain(&key, &key.id(), &[0; 24], &address, Zeroizing::new(good));
    assert_eq!(open(&key, &address, &sealed.0).unwrap().expose(), text);
}

#[test]
fn a_body_cannot_be_swapped_between_records_charts_or_tenants() {
    let root = RootKey::new(Key::generate());
    let (ours, theirs) = (TenantKeys::generate([1; 16]), TenantKeys::generate([2; 16]));
    let chart = ours.chart_token(1, "p1");
    let (id, key, wrapped) = ours.new_chart_key(&chart);
    let address = |record: &str| Address {
        op: 1,
        tenant: ours.uid,
        chart,
        record_type: ours.type_token(&chart, "Observation"),
        record: ours.record_token(&chart, "Observation", record),
        write_id: write_id(&[7; 16], 3),
        last: true,
        ..Address::of(Kind::Body)
    };
    let body = seal(&key, &id, &address("a"), b"sealed for a", Compression::Zstd).unwrap();
    assert_eq!(open(&key, &address("a"), &body.0).unwrap().expose(), b"sealed for a");
    assert_eq!(open(&key, &address("b"), &body.0).unwrap_err(), OpenError::Unauthentic);
    let in_their_tenant = Address { tenant: theirs.uid, ..address("a") };
    assert_eq!(open(&key, &in_their_tenant, &body.0).unwrap_err(), OpenError::Unauthentic);

    assert_eq!(ours.unwrap_chart_key(&chart, &id, &wrapped.0).unwrap().id(), id);
    assert!(ours.unwrap_chart_key(&ours.chart_token(1, "p2"), &id, &wrapped.0).is_err());
    assert!(ours.unwrap_chart_key(&chart, &[0; 8], &wrapped.0).is_err());
    assert!(theirs.unwrap_chart_key(&chart, &id, &wrapped.0).is_err());

    let wrapped = ours.wrap(&root);
    let unwrapped = TenantKeys::unwrap(&root, ours.uid, &wrapped).unwrap();
    assert_eq!(unwrapped.chart_token(1, "p1"), chart);
    let principal = ours.principal_token("spiffe://example/operator/ada");
    let grant = ours.seal_grant(&principal, b"reader").unwrap();
    assert_eq!(unwrapped.open_grant(&principal, &grant.0).unwrap().expose(), b"reader");
    assert!(TenantKeys::unwrap(&root, theirs.uid, &wrapped).is_err());
    assert!(TenantKeys::unwrap(&RootKey::new(Key::generate()), ours.uid, &wrapped).is_err());
    let swapped =
        WrappedTenantKeys { tenant_key: wrapped.audit_key.clone(), audit_key: wrapped.tenant_key.clone(), ..wrapped };
    assert!(TenantKeys::unwrap(&root, ours.uid, &swapped).is_err());
}

#[test]
fn grants_page_tokens_and_audit_events_open_at_their_own_place_only() {
    let (ours, theirs) = (TenantKeys::generate([1; 16]), TenantKeys::generate([2; 16]));
    let (ada, bob) = (ours.principal_token("ada"), ours.principal_token("bob"));
    let grant = ours.seal_grant(&ada, b"writer").unwrap();
    assert!(ours.open_grant(&bob, &grant.0).is_err());
    assert!(theirs.open_grant(&ada, &grant.0).is_err());
    assert!(ours.open_page_token(&ada, &grant.0).is_err());
    let page = ours.seal_page_token(&ada, b"after 7").unwrap();
    assert_eq!(ours.open_page_token(&ada, &page.0).unwrap().expose(), b"after 7");
    assert!(ours.open_page_token(&bob, &page.0).is_err());
    assert!(ours.open_grant(&ada, &page.0).is_err());
    let chart = ours.chart_token(1, "p1");
    let event = ours.seal_audit(&chart, &write_id(&[1; 16], 0), b"event").unwrap();
    assert_eq!(ours.open_audit(&chart, &write_id(&[1; 16], 0), &event.0).unwrap().expose(), b"event");
    assert!(ours.open_audit(&chart, &write_id(&[1; 16], 1), &event.0).is_err());
    assert!(ours.open_audit(&ours.chart_token(1, "p2"), &write_id(&[1; 16], 0), &event.0).is_err());
}

#[test]
fn tokens_differ_by_purpose_tenant_chart_and_boundary() {
    let keys = TenantKeys::generate([1; 16]);
    let other = TenantKeys::generate([1; 16]);
    let (chart, chart_2) = (keys.chart_token(1, "x"), keys.chart_token(1, "y"));
    let tokens = [
        chart,
        chart_2,
        keys.chart_token(2, "x"),
        other.chart_token(1, "x"),
        keys.principal_token("x"),
        keys.principal_token("\u{1}x"),
        keys.fingerprint(b"x"),
        keys.fingerprint(b"\x01x"),
        other.principal_token("x"),
        keys.type_token(&chart, "x"),
        keys.type_token(&chart_2, "x"),
        keys.record_token(&chart, "x", "yz"),
        keys.record_token(&chart, "xy", "z"),
        keys.record_token(&chart_2, "x", "yz"),
        other.record_token(&chart, "x", "yz"),
        RootKey::new(Key::generate()).principal_token("x"),
    ];
    for (at, token) in tokens.iter().enumerate() {
        assert!(!tokens[at + 1..].contains(token), "{at}");
    }
}

#[test]
fn slots_spread() {
    let keys = TenantKeys::generate([1; 16]);
    let mut eighths = [0; 8];
    for n in 0..8_000 {
        eighths[usize::from(keys.slot(&keys.chart_token(1, &n.to_string()))) >> 13] += 1;
    }
    // Ten standard deviations: a chance of 10^-22 to fail by accident.
    assert!(eighths.iter().all(|count| (700..1_300).contains(count)), "{eighths:?}");
}

#[test]
fn the_limit_is_the_limit_also_when_compressed() {
    let key = Key::generate();
    let address = Address::of(Kind::Body);
    let mut clear = vec![0; CLEAR_LEN_MAX];
    for compression in [Compression::None, Compression::Zstd] {
        let sealed = seal(&key, &key.id(), &address, &clear, compression).unwrap();
        assert!(sealed.0.len() <= ENVELOPE_LEN_MAX);
        assert_eq!(open(&key, &address, &sealed.0).unwrap().expose().len(), CLEAR_LEN_MAX);
    }
    clear.push(0);
    assert_eq!(seal(&key, &key.id(), &address, &clear, Compression::Zstd).unwrap_err(), SealError::TooLarge);
}

#[test]
fn sealing_twice_gives_two_envelopes() {
    let key = Key::generate();
    let sealed = || seal(&key, &key.id(), &Address::of(Kind::Body), b"same", Compression::None).unwrap();
    assert_ne!(sealed(), sealed());
}

#[test]
fn nothing_secret_is_shown() {
    let keys = TenantKeys::generate([1; 16]);
    let (_, key, sealed) = keys.new_chart_key(&[2; 16]);
    let root = RootKey::new(Key::generate());
    let clear = Clear::from(b"secret".to_vec());
    let address = Address { tenant: [9; 16], ..Address::of(Kind::Body) };
    let shown = format!("{key:?} {root:?} {keys:?} {clear:?} {address:?} {sealed:?}");
    let expected =
        "Key(redacted) RootKey(redacted) TenantKeys(redacted) Clear(redacted) Address { kind: Body, op: 0, .. }";
    assert_eq!(shown, format!("{expected} Sealed({} bytes)", sealed.0.len()));
    assert_eq!(Bytes::from(clear), &b"secret"[..]);
}

#[test]
fn root_check_tells_key_and_cluster() {
    let (root, other) = (RootKey::new(Key::generate()), RootKey::new(Key::generate()));
    let check = root.root_check_seal("example");
    assert_eq!(root.root_check_open("example", &check.0), Ok(()));
    assert_eq!(root.root_check_open("another", &check.0), Err(RootCheckError::OtherCluster));
    assert_eq!(other.root_check_open("example", &check.0), Err(RootCheckError::OtherRootKey));
}

#[test]
fn root_key_file_round_trip_and_refusals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.key");
    create_root_key_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let load = |path: &std::path::Path| provider_from_uri(&format!("file:{}", path.display())).unwrap().load();
    let token = load(&path).unwrap().principal_token("x");
    assert_eq!(load(&path).unwrap().principal_token("x"), token);
    let again = create_root_key_file(&path);
    assert!(
        matches!(&again, Err(RootKeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists)
    );
    assert_eq!(
        provider_from_uri(&format!("file://{}", path.display())).unwrap().load().unwrap().principal_token("x"),
        token
    );

    for mode in [0o640, 0o604, 0o620, 0o700, 0o660, 0o4600] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(load(&path), Err(RootKeyError::Mode { mode: shown, .. }) if shown == mode), "{mode:o}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    load(&path).unwrap();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.trim_end()).unwrap();
    assert_eq!(load(&path).unwrap().principal_token("x"), token);
    let bad = [
        String::new(),
        text[..40].into(),
        format!("{text}\n"),
        format!("x{text}"),
        text.replace("-v1", "-v2"),
        text.replacen(&text[30..31], "g", 1),
    ];
    for text in bad {
        fs::write(&path, &text).unwrap();
        let error = load(&path).unwrap_err();
        assert!(matches!(error, RootKeyError::Malformed { .. }), "{text}: {error}");
    }
    assert!(matches!(load(folder.path()), Err(RootKeyError::Malformed { .. })));
    assert!(matches!(load(&folder.path().join("absent")), Err(RootKeyError::Io { .. })));
    for uri in ["", "/etc/root.key", "file:", "file://host/root.key", "vault:x"] {
        assert!(matches!(provider_from_uri(uri), Err(RootKeyError::UnknownUri)), "{uri}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn round_trip(
        len in prop_oneof![0usize..300, 0usize..102_400],
        seed: [u8; 32],
        noise: bool,
        zstd: bool,
        op: u8,
        part: u32,
    ) {
        // Noise does not compress; the repeated seed does.
        let mut clear: Vec<u8> = seed.iter().copied().cycle().take(len).collect();
        if noise {
            getrandom::fill(&mut clear).unwrap();
        }
        let key = Key::from_bytes(&seed);
        let address = Address { op, part, tenant: [op; 16], ..Address::of(Kind::Body) };
        let compression = if zstd { Compression::Zstd } else { Compression::None };
        let sealed = seal(&key, &key.id(), &address, &clear, compression).unwrap();
        let opened = open(&key, &address, &sealed.0).unwrap();
        prop_assert_eq!(opened.expose(), &clear[..]);
        let framed = 5 + len;
        prop_assert!(sealed.0.len() - 82 <= framed + framed * 12 / 100);
        if zstd && !noise && len > 1_000 {
            prop_assert!(sealed.0.len() < len / 2);
        }
    }

    #[test]
    fn opening_anything_never_panics(mut sealed in proptest::collection::vec(any::<u8>(), 0..400), versioned: bool) {
        if versioned && sealed.len() > 1 {
            sealed[..2].fill(1);
        }
        prop_assert!(open(&Key::generate(), &Address::of(Kind::Body), &sealed).is_err());
    }
}
