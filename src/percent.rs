//! Percent-encoding, as URLs and their queries have it (RFC 3986, section 2.1).

/// What the escapes stand for; `None` if a `%` is not followed by two hex digits. In a query a `+`
/// may stand for a space.
pub fn decode(text: &str, plus_is_space: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_bytes() {
        let check = |text: &str, plus_is_space: bool, expected: Option<&[u8]>| {
            assert_eq!(decode(text, plus_is_space).as_deref(), expected, "{text}");
        };
        check("", false, Some(b""));
        check("a%20b%2fC%Ff", false, Some(b"a b/C\xff"));
        check("a+b%2B", true, Some(b"a b+"));
        check("a+b", false, Some(b"a+b"));
        for broken in ["%", "a%2", "%g0", "%0g", "%+1", "% 1", "%\u{e9}0"] {
            check(broken, false, None);
        }
    }
}
