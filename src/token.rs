//! Tokens: what a client shows to be answered. The one place where they are checked, compared and
//! written into a request.
//!
//! Nothing else gets at the text, so no error, log line or debug print can hold it.

use std::fmt;

use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// The longest token, in bytes: a longer one would leave no room in a request head.
const BYTES_MAX: usize = 4096;
/// Where a token is looked up if none was given.
const VARIABLE: &str = "LITESTREAM_TOKEN";

/// A secret both ends know. Two compare in a time that depends on their lengths only.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in the option `"token"`.
    pub fn given(option: Option<String>) -> Result<Option<Self>> {
        option.map(|text| Self::parse(text, "option \"token\"")).transpose()
    }

    /// The same, or the environment's as it is at the moment of the call.
    pub fn or_environment(given: Option<Self>) -> Result<Option<Self>> {
        let found = || std::env::var_os(VARIABLE).filter(|text| !text.is_empty());
        match given.map_or_else(|| found().map(Err), |token| Some(Ok(token))) {
            None => Ok(None),
            Some(Ok(token)) => Ok(Some(token)),
            Some(Err(text)) => {
                let text = text.into_string().unwrap_or_default();
                Self::parse(text, &format!("environment variable {VARIABLE}")).map(Some)
            }
        }
    }

    fn parse(text: String, from: &str) -> Result<Self> {
        let fits = (1..=BYTES_MAX).contains(&text.len());
        if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::usage(format!(
                "{from}: expected 1 to {BYTES_MAX} visible ASCII characters without spaces"
            )));
        }
        Ok(Token(text))
    }

    /// Whether an `Authorization` header shows this token.
    pub fn is_shown_by(&self, header: Option<&str>) -> bool {
        let given = header.and_then(bearer).unwrap_or_default();
        given.as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// The value of an `Authorization` header that shows it.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text of the peer's, who may send back what it was sent.
    pub fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "...")
    }
}

/// The token in an `Authorization` header.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::given(Some(text.to_owned())).unwrap().unwrap()
    }

    #[test]
    fn only_the_whole_token_is_it() {
        let secret = token("s3cret");
        let is = |header: &str| secret.is_shown_by(Some(header));
        assert!(is("Bearer s3cret") && is("bearer s3cret") && is(" BEARER  s3cret "));
        for header in
            ["", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret"]
        {
            assert!(!is(header), "{header}");
        }
        assert!(!secret.is_shown_by(None));
        assert_eq!(secret, token("s3cret"));
        assert_ne!(secret, token("s3creT"));
        assert_eq!(secret.header(), "Bearer s3cret");
    }

    #[test]
    fn no_print_shows_it() {
        let secret = token("s3cret");
        assert_eq!(format!("{secret:?}"), "Token(...)");
        assert_eq!(secret.hide_in("you sent Bearer s3cret!"), "you sent Bearer ...!");
        let long = "x".repeat(BYTES_MAX + 1);
        for bad in ["", "a b", "a\n", "\u{e9}", &long] {
            let error = Token::given(Some(bad.to_owned())).unwrap_err().to_string();
            let expected = "option \"token\": expected 1 to 4096 visible ASCII characters without \
                            spaces";
            assert_eq!(error, expected);
        }
        assert_eq!(Token::given(None).unwrap(), None);
    }
}
