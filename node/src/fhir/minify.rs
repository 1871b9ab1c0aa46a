//! Takes the white space between tokens out, and nothing else.

use super::json::{JsonError, Scanner, utf8};

/// The same tokens without white space between them. Fails where the text is not JSON.
///
/// Two texts with equal results hold the same tokens in the same order.
pub fn minify(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    let text = utf8(text)?;
    let mut scanner = Scanner::new(text);
    let value = scanner.value()?;
    scanner.end()?;
    Ok(strip(value))
}

/// `minify` of a text that a scanner has accepted.
pub(super) fn strip(json: &str) -> Vec<u8> {
    let bytes = json.as_bytes();
    let mut kept = Vec::with_capacity(bytes.len());
    let (mut at, mut run) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b' ' | b'\t' | b'\n' | b'\r' => {
                kept.extend_from_slice(&bytes[run..at]);
                at += 1;
                run = at;
            }
            _ => at += 1,
        }
    }
    kept.extend_from_slice(&bytes[run..]);
    kept
}

/// Behind the closing quote of the string that opens at `open`.
fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::{DEPTH_MAX, JsonFault};
    use super::*;

    /// The tokens of a generated value, in order.
    fn value_tokens() -> impl Strategy<Value = Vec<String>> {
        let leaf = prop_oneof![
            string_token(),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?",
            Just("true".to_owned()),
            Just("false".to_owned()),
            Just("null".to_owned()),
        ];
        leaf.prop_map(|token| vec![token]).prop_recursive(6, 64, 6, |inner| {
            let item = inner.clone();
            prop_oneof![
                prop::collection::vec(item, 0..6).prop_map(|items| enclose("[", "]", items)),
                prop::collection::vec((string_token(), inner), 0..6).prop_map(|members| {
                    let members = members.into_iter().map(|(name, value)| {
                        let mut tokens = vec![name, ":".to_owned()];
                        tokens.extend(value);
                        tokens
                    });
                    enclose("{", "}", members.collect())
                }),
            ]
        })
    }

    fn string_token() -> impl Strategy<Value = String> {
        let part =
            prop_oneof!["[ -!#-\\[\\]-~]{0,8}", "[à-ž一-龥😀-😎]{1,4}", "\\\\[\"\\\\/bfnrt]", "\\\\u[0-9a-fA-F]{4}",];
        prop::collection::vec(part, 0..6).prop_map(|parts| format!("\"{}\"", parts.concat()))
    }

    fn enclose(open: &str, close: &str, values: Vec<Vec<String>>) -> Vec<String> {
        let mut tokens = vec![open.to_owned()];
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                tokens.push(",".to_owned());
            }
            tokens.extend(value);
        }
        tokens.push(close.to_owned());
        tokens
    }

    proptest! {
        #[test]
        fn keeps_every_token_whatever_the_white_space(
            tokens in value_tokens(),
            spaces in prop::collection::vec("[ \t\r\n]{0,4}", 1..16),
        ) {
            let tight = tokens.concat();
            let mut spread = String::new();
            for (token, space) in tokens.iter().zip(spaces.iter().cycle()) {
                spread.push_str(space);
                spread.push_str(token);
            }
            spread.push_str(&spaces[0]);
            prop_assert_eq!(minify(spread.as_bytes()).unwrap(), tight.as_bytes());
            prop_assert_eq!(minify(tight.as_bytes()).unwrap(), tight.as_bytes());
        }

        #[test]
        fn a_pretty_text_and_a_tight_one_are_equal(tokens in value_tokens()) {
            let tight = tokens.concat();
            // A lone surrogate escape is a token of JSON, but no text that serde_json takes.
            prop_assume!(serde_json::from_str::<serde_json::Value>(&tight).is_ok());
            let raw: Box<serde_json::value::RawValue> = serde_json::from_str(&tight).unwrap();
            let pretty = pretty(raw.get());
            prop_assert_eq!(minify(pretty.as_bytes()).unwrap(), minify(tight.as_bytes()).unwrap());
        }

        #[test]
        fn takes_what_serde_json_takes(text in "[\\[\\]{}:,\"\\\\ 0-9eE+.truefalsnu-]{0,24}") {
            let other = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(minify(text.as_bytes()).is_ok(), other);
        }

        #[test]
        fn never_panics_and_never_takes_a_cut_text(tokens in value_tokens(), cut in 0_usize..200) {
            let text = tokens.concat();
            let cut = cut.min(text.len());
            let result = minify(&text.as_bytes()[..cut]);
            if cut < text.len() && text.starts_with(['{', '[', '"']) {
                prop_assert_eq!(result.unwrap_err().fault, JsonFault::Cut);
            }
        }
    }

    /// Line breaks and indents at every token outside strings, without reading numbers or escapes.
    fn pretty(tight: &str) -> String {
        let (mut out, mut inside, mut escaped) = (String::new(), false, false);
        for letter in tight.chars() {
            if !inside && matches!(letter, '}' | ']') {
                out.push('\n');
            }
            out.push(letter);
            if inside {
                inside = escaped || letter != '"';
                escaped = !escaped && letter == '\\';
            } else if letter == '"' {
                inside = true;
            } else if matches!(letter, '{' | '[' | ',' | ':') {
                out.push_str("\r\n \t");
            }
        }
        out
    }

    #[test]
    fn keeps_digits_order_and_escapes() {
        let text = br#" { "b" : 1.50 , "a" : [ 1E+02 , -0.0 ] , "t" : " \u00e9 \/ \" , : " , "a" : null } "#;
        let tight = br#"{"b":1.50,"a":[1E+02,-0.0],"t":" \u00e9 \/ \" , : ","a":null}"#;
        assert_eq!(minify(text).unwrap(), tight);
    }

    #[test]
    fn refuses_what_is_not_json_and_says_where() {
        for (text, byte, fault) in [
            (&b""[..], 0, JsonFault::Cut),
            (b"  ", 2, JsonFault::Cut),
            (b"{\"a\":1", 6, JsonFault::Cut),
            (b"\"a\\", 3, JsonFault::Cut),
            (b"tru", 3, JsonFault::Cut),
            (b"{a:1}", 1, JsonFault::Unexpected),
            (b"[1,]", 3, JsonFault::Unexpected),
            (b"{\"a\":1,}", 7, JsonFault::Unexpected),
            (b"[1 2]", 3, JsonFault::Unexpected),
            (b"nul!", 3, JsonFault::Unexpected),
            (b"01", 1, JsonFault::Number),
            (b"[1.]", 3, JsonFault::Number),
            (b"-x", 1, JsonFault::Number),
            (b"\"\n\"", 1, JsonFault::Text),
            (b"\"\\x\"", 2, JsonFault::Text),
            (b"\"\\u12g4\"", 5, JsonFault::Text),
            (b"{} {}", 3, JsonFault::Trailing),
            (b"\"\xff\"", 1, JsonFault::NotUtf8),
        ] {
            assert_eq!(minify(text), Err(JsonError { byte, fault }), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(minify(&nested(DEPTH_MAX)).unwrap(), nested(DEPTH_MAX));
        let too_deep = JsonError { byte: DEPTH_MAX, fault: JsonFault::TooDeep };
        assert_eq!(minify(&nested(DEPTH_MAX + 1)), Err(too_deep));
    }
}
