//! Positions: their text forms and their order.

use super::*;

#[track_caller]
fn pos(generation: u64, index: u64, offset: u64) -> Pos {
    let index = Index::new(index).unwrap();
    Pos::new(Generation::from_bits(generation), index, Offset::new(offset).unwrap())
}

#[track_caller]
fn check_error<T: fmt::Debug>(result: Result<T>, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
}

#[test]
fn generation_text() {
    let check = |bits: u64, text: &str| {
        assert_eq!(Generation::from_bits(bits).to_string(), text);
        assert_eq!(Generation::parse(text).unwrap().to_bits(), bits);
        assert_eq!(text.parse::<Generation>().unwrap().to_bits(), bits);
        assert_eq!(Generation::parse_padded(text).unwrap().to_bits(), bits);
    };
    check(0, "0000000000000000");
    check(1, "0000000000000001");
    check(0xfb74_4889_fe01_aa13, "fb744889fe01aa13");
    check(u64::MAX, "ffffffffffffffff");
    assert!(Generation::ZERO.is_zero());
    assert!(!Generation::from_bits(1).is_zero());
}

#[test]
fn generation_names() {
    let check = |text: &str, expected: bool| {
        assert_eq!(is_generation_name(text), expected, "{text:?}");
        assert_eq!(Generation::parse(text).is_ok(), expected, "{text:?}");
    };
    check("0123456789abcdef", true);
    check("", false);
    check("0123456789abcde", false);
    check("0123456789abcdef0", false);
    check("0123456789ABCDEF", false);
    check("0123456789abcdeg", false);
    check("+123456789abcdef", false);
    check("0x23456789abcdef", false);
    check("               1", false);
    check("\u{e9}123456789abcde", false); // 16 bytes, 15 characters
}

#[test]
fn padded_generation() {
    let check = |text: &str, expected: Option<u64>| {
        assert_eq!(Generation::parse_padded(text).ok().map(Generation::to_bits), expected);
    };
    check("               1", Some(1));
    check("  23456789abcdef", Some(0x0023_4567_89ab_cdef));
    check("                ", None);
    check(" 1", None);
    check("1               ", None);
    check("       1       1", None);
    check("", None);
    check("              +1", None);
}

#[test]
fn index_and_offset_text() {
    let check = |text: &str, number: u64| {
        assert_eq!(parse_index(text).unwrap().get(), number, "{text:?}");
        assert_eq!(parse_offset(text).unwrap().get(), number, "{text:?}");
    };
    check("0", 0);
    check("1", 1);
    check("ff", 255);
    check("FF", 255);
    check("fF", 255);
    check("0000000000000010", 16);
    check("0000000000000000000000000000000010", 16);
    check("7fffffffffffffff", NUMBER_MAX);
    assert_eq!(format_index(Index::new(16).unwrap()), "0000000000000010");
    assert_eq!(format_offset(Offset::new(NUMBER_MAX).unwrap()), "7fffffffffffffff");
    assert_eq!("1f".parse::<Index>().unwrap().get(), 31);
    assert_eq!("1f".parse::<Offset>().unwrap().get(), 31);
}

#[test]
fn index_and_offset_errors() {
    for text in ["", "+1", "-1", "0x1", "1_0", "xyz", " 1", "1 ", "10000000000000000", "\u{661}"] {
        check_error(parse_index(text), &format!("cannot parse index: {text:?}"));
        check_error(parse_offset(text), &format!("cannot parse offset: {text:?}"));
    }
    for text in ["8000000000000000", "ffffffffffffffff", "FFFFFFFFFFFFFFFF"] {
        check_error(parse_index(text), &format!("index too large: {text:?}"));
        check_error(parse_offset(text), &format!("offset too large: {text:?}"));
    }
    check_error(Index::new(1 << 63), "index too large: 9223372036854775808");
    check_error(Offset::new(u64::MAX), "offset too large: 18446744073709551615");
}

#[test]
fn next_index() {
    let next = |index: u64| Index::new(index).unwrap().next().get();
    assert_eq!(next(0), 1);
    assert_eq!(next(0xff), 0x100);
    assert_eq!(next(NUMBER_MAX), NUMBER_MAX);
}

#[test]
fn pos_text() {
    let check = |value: Pos, text: &str| {
        assert_eq!(value.to_string(), text);
        assert_eq!(text.parse::<Pos>().unwrap(), value);
    };
    check(pos(1, 0, 0), "0000000000000001/0000000000000000:0000000000000000");
    check(pos(0, 1, 0), "0000000000000000/0000000000000001:0000000000000000");
    check(
        pos(0xfb74_4889_fe01_aa13, 0x10, 4152),
        "fb744889fe01aa13/0000000000000010:0000000000001038",
    );
    let end = pos(u64::MAX, NUMBER_MAX, NUMBER_MAX);
    check(end, "ffffffffffffffff/7fffffffffffffff:7fffffffffffffff");
    assert_eq!(Pos::default().to_string(), "");
    assert_eq!("0000000000000001/a:B".parse::<Pos>().unwrap(), pos(1, 10, 11));
}

#[test]
fn pos_errors() {
    let check = |text: &str, expected: &str| {
        check_error(text.parse::<Pos>(), &format!("invalid position {text:?}: {expected}"));
    };
    for text in ["", "/", ":", "0000000000000001", "0000000000000001/0", "0000000000000001:0"] {
        check(text, "expected GENERATION/INDEX:OFFSET");
    }
    let digits = "expected 16 lowercase hexadecimal digits";
    check("1/0:0", &format!("invalid generation \"1\": {digits}"));
    check("000000000000000A/0:0", &format!("invalid generation \"000000000000000A\": {digits}"));
    check("0000000000000001/:0", "cannot parse index: \"\"");
    check("0000000000000001/0:", "cannot parse offset: \"\"");
    check("0000000000000001/0:1:2", "cannot parse offset: \"1:2\"");
    check("0000000000000001/0:0\n", "cannot parse offset: \"0\\n\"");
    check("0000000000000001/8000000000000000:0", "index too large: \"8000000000000000\"");
}

#[test]
fn zero_and_truncate() {
    assert!(Pos::default().is_zero());
    for value in [pos(1, 0, 0), pos(0, 1, 0), pos(0, 0, 1)] {
        assert!(!value.is_zero());
    }
    assert_eq!(pos(1, 2, 3).truncate(), pos(1, 2, 0));
    assert_eq!(pos(1, 2, 0).truncate(), pos(1, 2, 0));
}

#[test]
fn order() {
    let check = |a: Pos, b: Pos, expected: Ordering| {
        assert_eq!(compare_pos(a, b).unwrap(), expected);
        assert_eq!(compare_pos(b, a).unwrap(), expected.reverse());
        assert_eq!(a.to_string().cmp(&b.to_string()), expected);
    };
    check(pos(1, 2, 3), pos(1, 2, 3), Ordering::Equal);
    check(pos(1, 2, 3), pos(1, 2, 4), Ordering::Less);
    check(pos(1, 2, 9), pos(1, 3, 0), Ordering::Less);
    check(pos(1, 0, 0), pos(1, NUMBER_MAX, 0), Ordering::Less);
    let error = compare_pos(pos(1, 0, 0), pos(2, 0, 0)).unwrap_err();
    assert!(error.to_string().starts_with("generation mismatch"), "{error}");
}
