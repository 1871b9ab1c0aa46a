//! A scanner over JSON text (RFC 8259) that checks the grammar and hands out spans of it, never values.
//!
//! Owns: the grammar, the depth limit, the byte offset of an error. Strict: no comments, no trailing commas, nothing
//! after the text. Lone surrogate escapes pass, as they are tokens like others; only who decodes such a string fails.

use std::borrow::Cow;

use super::DEPTH_MAX;

/// Why a text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    #[error("not UTF-8")]
    NotUtf8,
    #[error("the text ends too early")]
    Cut,
    #[error("not JSON: unexpected character")]
    Unexpected,
    #[error("not JSON: malformed number")]
    Number,
    #[error("not JSON: malformed string")]
    Text,
    #[error("nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    #[error("something follows the end of the text")]
    Trailing,
}

/// A fault and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {byte}: {fault}")]
pub struct JsonError {
    pub byte: usize,
    pub fault: JsonFault,
}

/// Text of which the scanner has seen that it is UTF-8.
pub(super) fn utf8(text: &[u8]) -> Result<&str, JsonError> {
    std::str::from_utf8(text).map_err(|error| {
        // No error length: the last character is cut, and so is the text.
        let fault = if error.error_len().is_some() { JsonFault::NotUtf8 } else { JsonFault::Cut };
        JsonError { byte: error.valid_up_to(), fault }
    })
}

/// The content of a string token; `None` when its escapes stand for no Unicode text (a lone surrogate).
pub(super) fn decode(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(token).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    /// Byte offset of what comes next, white space skipped.
    pub fn position(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    /// The first byte of the next token.
    pub fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.here()
    }

    /// Skips one value and returns its span, white space inside included.
    pub fn value(&mut self) -> Result<&'a str, JsonError> {
        let start = self.position();
        match self.here() {
            Some(b'{') => self.members(|scanner, _| scanner.value().map(|_| ()))?,
            Some(b'[') => self.items(|scanner, _| scanner.value().map(|_| ()))?,
            Some(b'"') => drop(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            _ => return Err(self.unexpected()),
        }
        Ok(&self.text[start..self.at])
    }

    /// Goes through an object. `each` gets the name, as a token, and must consume the value.
    pub fn members<E: From<JsonError>>(
        &mut self,
        mut each: impl FnMut(&mut Self, &'a str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'{')?;
        if !self.take(b'}') {
            loop {
                let name = self.string()?;
                self.expect(b':')?;
                each(self, name)?;
                if self.take(b'}') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Goes through an array. `each` gets the index and must consume the item.
    pub fn items<E: From<JsonError>>(
        &mut self,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'[')?;
        if !self.take(b']') {
            for index in 0.. {
                each(self, index)?;
                if self.take(b']') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// The next string as a token: with quotes, escapes as they stand.
    pub fn string(&mut self) -> Result<&'a str, JsonError> {
        let start = self.position();
        self.expect(b'"')?;
        loop {
            match self.here() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => return Err(self.fault(JsonFault::Text)),
                Some(_) => self.at += 1,
                None => return Err(self.fault(JsonFault::Cut)),
            }
        }
        self.at += 1;
        Ok(&self.text[start..self.at])
    }

    /// Nothing but white space may be left.
    pub fn end(&mut self) -> Result<(), JsonError> {
        if self.peek().is_some() { Err(self.fault(JsonFault::Trailing)) } else { Ok(()) }
    }

    fn here(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.here(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.at += 1;
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn enter(&mut self, open: u8) -> Result<(), JsonError> {
        if self.depth == DEPTH_MAX {
            return Err(self.fault(JsonFault::TooDeep));
        }
        self.expect(open)?;
        self.depth += 1;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.here() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    match self.here() {
                        Some(digit) if digit.is_ascii_hexdigit() => self.at += 1,
                        Some(_) => return Err(self.fault(JsonFault::Text)),
                        None => return Err(self.fault(JsonFault::Cut)),
                    }
                }
            }
            Some(_) => return Err(self.fault(JsonFault::Text)),
            None => return Err(self.fault(JsonFault::Cut)),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.here() == Some(b'-') {
            self.at += 1;
        }
        if self.here() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.here() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.here(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.here(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // `01` and `1.2.3` end here; what follows a number must be able to follow it.
        if matches!(self.here(), Some(b'0'..=b'9' | b'.' | b'+' | b'-' | b'a'..=b'z' | b'A'..=b'Z')) {
            return Err(self.fault(JsonFault::Number));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.here(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        match self.here() {
            _ if self.at > start => Ok(()),
            None => Err(self.fault(JsonFault::Cut)),
            Some(_) => Err(self.fault(JsonFault::Number)),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), JsonError> {
        for byte in word.bytes() {
            if self.here() != Some(byte) {
                return Err(self.unexpected());
            }
            self.at += 1;
        }
        Ok(())
    }

    fn unexpected(&self) -> JsonError {
        self.fault(if self.here().is_none() { JsonFault::Cut } else { JsonFault::Unexpected })
    }

    fn fault(&self, fault: JsonFault) -> JsonError {
        JsonError { byte: self.at, fault }
    }
}
