//! The label at the head of the text of every message: its flow, its number, and a checksum over both. By it
//! a message is judged without parsing JSON, and an altered label is not taken for another message.

use memchr::memchr;

/// `~`, five digits of flow, eight of number, eight of checksum; hexadecimal, so that no relay has to escape
/// any of it.
pub(crate) const LABEL_BYTES: usize = 1 + FLOW_DIGITS + NUMBER_BYTES;
pub(crate) const FLOWS_MAX: usize = 1 << (4 * FLOW_DIGITS);
pub(crate) const NUMBER_BYTES: usize = 16;
const FLOW_DIGITS: usize = 5;
const MARK: u8 = b'~';

/// A label that was found in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LabelMatch {
    /// Where the label begins.
    pub(crate) at: usize,
    pub(crate) flow: usize,
    pub(crate) number: [u8; NUMBER_BYTES],
}

/// The label of the message with this number.
pub(crate) fn label(flow: usize, number: u32) -> [u8; LABEL_BYTES] {
    let mut label = [MARK; LABEL_BYTES];
    for (digit, place) in label[1..=FLOW_DIGITS].iter_mut().rev().enumerate() {
        *place = b"0123456789abcdef"[flow >> (4 * digit) & 0xf];
    }
    label[1 + FLOW_DIGITS..].copy_from_slice(&number_digits(flow, number));
    label
}

/// The first label in a payload.
#[inline]
pub(crate) fn find(payload: &[u8]) -> Option<LabelMatch> {
    let at = memchr(MARK, payload)?;
    let label: &[u8; LABEL_BYTES] = payload[at..].first_chunk()?;
    let mut flow = 0;
    for digit in &label[1..=FLOW_DIGITS] {
        flow = flow << 4 | usize::from(digit_value(*digit)?);
    }
    let number = label[1 + FLOW_DIGITS..].first_chunk()?;
    Some(LabelMatch {
        at,
        flow,
        number: *number,
    })
}

/// A number and its checksum, as digits.
#[inline]
pub(crate) fn number_digits(flow: usize, number: u32) -> [u8; NUMBER_BYTES] {
    let digits = u128::from(hex(number)) << 64 | u128::from(hex(checksum(flow, number)));
    digits.to_be_bytes()
}

/// The number that the digits stand for, or `None` where the checksum is wrong.
pub(crate) fn number(flow: usize, digits: [u8; NUMBER_BYTES]) -> Option<u32> {
    let mut value = 0;
    for digit in &digits[..NUMBER_BYTES / 2] {
        value = value << 4 | u32::from(digit_value(*digit)?);
    }
    (number_digits(flow, value) == digits).then_some(value)
}

/// The checksum. Two inputs that differ in few bits get checksums that differ in many (the multiplier is
/// 2^64 divided by the golden ratio).
#[inline]
fn checksum(flow: usize, number: u32) -> u32 {
    let both = (flow as u64) << 32 | u64::from(number);
    let mixed = (both ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

/// Eight hexadecimal digits, the first in the highest byte. Spreads each half byte of the number to a byte,
/// and turns all eight into characters at once.
#[inline]
fn hex(number: u32) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let halves = u64::from(number);
    let pairs = (halves << 16 | halves) & 0x0000_ffff_0000_ffff;
    let bytes = (pairs << 8 | pairs) & 0x00ff_00ff_00ff_00ff;
    let digits = (bytes << 4 | bytes) & (0x0f * EACH);
    let above_nine = (digits + 6 * EACH) >> 4 & EACH;
    digits + u64::from(b'0') * EACH + above_nine * u64::from(b'a' - b'0' - 10)
}

#[inline]
fn digit_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_standard_library() {
        for number in [0, 1, 9, 10, 0xabcd_ef01, 0x0a0b_9876, u32::MAX] {
            assert_eq!(
                hex(number).to_be_bytes(),
                *format!("{number:08x}").as_bytes()
            );
        }
    }

    #[test]
    fn a_label_is_found_and_read() {
        for (flow, value) in [(0, 0), (7, 1), (FLOWS_MAX - 1, u32::MAX), (0xab_cde, 77)] {
            let mut payload = b"{\"sender_id\":12,\"message\":\"".to_vec();
            let at = payload.len();
            payload.extend_from_slice(&label(flow, value));
            payload.extend_from_slice(b"\"}");
            let found = find(&payload).unwrap();
            assert_eq!((found.at, found.flow), (at, flow));
            assert_eq!(number(flow, found.number), Some(value));
        }
        assert_eq!(find(b"no label"), None);
        assert_eq!(find(b"~0000000000000000000g"), None);
    }

    #[test]
    fn an_altered_number_is_noticed() {
        let digits = number_digits(3, 0x1234);
        for at in 0..NUMBER_BYTES {
            for replaced in *b"0123456789abcdefg" {
                let mut altered = digits;
                altered[at] = replaced;
                let expected = (altered == digits).then_some(0x1234);
                assert_eq!(number(3, altered), expected, "{at} {replaced}");
            }
        }
        assert_eq!(number(4, digits), None, "the number of another flow");
    }
}
