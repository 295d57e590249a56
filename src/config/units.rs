//! Values that parse themselves: durations, sizes, digests, instants, and one-or-several lists.
//!
//! Whatever can be wrong with a string is said from inside its visitor ([`text`]), because the decoder knows
//! the place of a value only while it visits it; said later, the fault would point at the whole list.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::Mul;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};
use toml::Spanned;
use toml::value::Datetime;

/// A number of bytes, written as `"32MiB"`, `"64KB"`, `"123B"` or a bare number of bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Size(pub u64);

/// A share in hundredths of a percent, written as `"20%"`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share(pub u32);

/// The SHA-256 of a secret, written as 64 hex digits; what it holds is never shown, for it may be the secret itself
/// that someone put there.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Digest(pub [u8; 32]);

/// What is said of anything that is not a digest, whatever it is.
pub(super) const NO_DIGEST: &str =
    "not a digest; write the SHA-256 of the secret as 64 hex digits, as `forebay key new` prints it";

/// What is said of a list that needs an entry and has none.
pub(super) const EMPTY: &str = "the list is empty; at least one entry is needed";

const A_DURATION: &str = "a duration such as \"5s\"";
const A_SIZE: &str = "a size such as \"32MiB\"";
const A_SHARE: &str = "a share such as \"20%\"";
const A_NETWORK: &str = "a network such as \"10.0.0.0/8\" or an IP address";

/// Longer than any of forebay's clocks needs, and short enough to be added to any of them.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const DURATIONS: [(&str, f64); 4] = [("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

const SHARES: [(&str, f64); 1] = [("%", 100.0)];

const SIZES: [(&str, f64); 9] = [
    ("B", 1.0),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
];

/// A string or a list of them.
enum OneOrSome<T> {
    One(T),
    Some(Vec<Spanned<T>>),
}

struct Network(IpNet);

struct DigestOrNone(Option<Digest>);

/// Reads a string by `parse`; `expected` says what anything but a string should have been.
pub(super) fn text<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    text_or_number(deserializer, expected, parse, None)
}

/// Reads a duration.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text_or_number(deserializer, A_DURATION, parse_duration, Some(no_unit))
}

/// Reads a duration that must not be zero.
pub(super) fn positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let parse = |text: &str| match parse_duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is no time at all; write more than zero")),
        duration => Ok(duration),
    };
    text_or_number(deserializer, A_DURATION, parse, Some(no_unit))
}

/// Reads networks, where a single address is the network of itself.
pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let networks = Vec::<Network>::deserialize(deserializer)?;
    Ok(networks.into_iter().map(|Network(net)| net).collect())
}

/// Reads a list that needs an entry.
pub(super) fn some_of<'de, D, T>(deserializer: D) -> Result<Vec<Spanned<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    spanned_some_of(deserializer).map(Spanned::into_inner)
}

/// Reads a list that needs an entry, and its place.
pub(super) fn spanned_some_of<'de, D, T>(deserializer: D) -> Result<Spanned<Vec<Spanned<T>>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Spanned::<Vec<Spanned<T>>>::deserialize(deserializer)?;
    if list.get_ref().is_empty() {
        return Err(D::Error::custom(EMPTY));
    }
    Ok(list)
}

/// Reads a string, or a list of them that needs an entry.
pub(super) fn one_or_some<'de, D, T>(deserializer: D) -> Result<Vec<Spanned<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let read = Spanned::<OneOrSome<T>>::deserialize(deserializer)?;
    let span = read.span();
    match read.into_inner() {
        OneOrSome::One(value) => Ok(vec![Spanned::new(span, value)]),
        OneOrSome::Some(values) if values.is_empty() => Err(D::Error::custom(EMPTY)),
        OneOrSome::Some(values) => Ok(values),
    }
}

/// Reads a digest, where `""` is none.
pub(super) fn digest_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Spanned<Digest>>, D::Error> {
    let read = Spanned::<DigestOrNone>::deserialize(deserializer)?;
    let span = read.span();
    let DigestOrNone(digest) = read.into_inner();
    Ok(digest.map(|digest| Spanned::new(span, digest)))
}

/// Reads a date and time with its zone.
pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let datetime = Datetime::deserialize(deserializer)?;
    let written = datetime.to_string();
    match datetime {
        Datetime { date: Some(_), time: Some(_), offset: Some(_) } => written.parse().map(Some).map_err(|_| {
            let example = "2027-01-01T00:00:00Z";
            D::Error::custom(format!("{written} is not a moment; write such as {example}"))
        }),
        Datetime { date: Some(_), time: Some(_), offset: None } => {
            Err(D::Error::custom(format!("{written} has no zone; write {written}Z for UTC")))
        }
        Datetime { date: Some(date), .. } => {
            Err(D::Error::custom(format!("{written} has no time of day and zone; write {date}T00:00:00Z")))
        }
        Datetime { date: None, .. } => {
            Err(D::Error::custom(format!("{written} has no date and zone; write such as 2027-01-01T{written}Z")))
        }
    }
}

fn text_or_number<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
    number: Option<fn(i64) -> Result<T, String>>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct Text<T> {
        expected: &'static str,
        parse: fn(&str) -> Result<T, String>,
        number: Option<fn(i64) -> Result<T, String>>,
    }

    impl<T> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_str<E: Error>(self, value: &str) -> Result<T, E> {
            (self.parse)(value).map_err(E::custom)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
            match self.number {
                Some(number) => number(value).map_err(E::custom),
                None => {
                    let found = serde::de::Unexpected::Signed(value);
                    Err(E::invalid_type(found, &self))
                }
            }
        }
    }

    deserializer.deserialize_any(Text { expected, parse, number })
}

fn no_unit(number: i64) -> Result<Duration, String> {
    Err(format!("{number} has no unit; write \"{number}s\""))
}

/// A duration as the configuration writes it: `"250ms" "5s" "10m" "1h"`.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanoseconds = measure(text, &DURATIONS, "s", A_DURATION)?;
    // Beyond the range of `u64` the conversion saturates, which is still longer than the longest.
    let duration = Duration::from_nanos(nanoseconds.round() as u64);
    if duration > LONGEST {
        return Err(format!("{text:?} is too long; write at most \"8784h\""));
    }
    Ok(duration)
}

fn parse_share(text: &str) -> Result<Share, String> {
    let hundredths = measure(text, &SHARES, "%", A_SHARE)?;
    if hundredths > 10_000.0 {
        return Err(format!("{text:?} is more than all; write at most \"100%\""));
    }
    Ok(Share(hundredths.round() as u32))
}

fn parse_size(text: &str) -> Result<Size, String> {
    let bytes = measure(text, &SIZES, "MiB", A_SIZE)?;
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text:?} is too large"));
    }
    Ok(Size(bytes.round() as u64))
}

fn parse_network(text: &str) -> Result<Network, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map(Network).map_err(|_| format!("{text:?} is not a network; write {A_NETWORK}"))
}

/// A decimal number and its unit, as a number of the smallest unit.
fn measure(text: &str, units: &[(&str, f64)], usual: &str, what: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not {what}");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    // Rust reads "5." and ".5" too, which no one means.
    if number.starts_with('.') || number.ends_with('.') {
        return Err(wrong());
    }
    let value: f64 = number.parse().map_err(|_| wrong())?;
    if unit.is_empty() {
        return Err(format!("{text:?} has no unit; write \"{text}{usual}\""));
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| {
        let known: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        format!("{text:?} has a unit that is not known; known are {known}, as in \"{number}{usual}\"")
    })?;
    Ok(value * factor)
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    let mut digest = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return Err(NO_DIGEST.to_owned());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    for (byte, &[high, low]) in digest.iter_mut().zip(pairs) {
        let value = digit(high).zip(digit(low));
        let (high, low) = value.ok_or_else(|| NO_DIGEST.to_owned())?;
        *byte = (high * 16 + low) as u8;
    }
    Ok(Digest(digest))
}

fn parse_digest_or_none(text: &str) -> Result<DigestOrNone, String> {
    if text.is_empty() {
        return Ok(DigestOrNone(None));
    }
    parse_digest(text).map(|digest| DigestOrNone(Some(digest)))
}

impl Size {
    /// One mebibyte.
    pub const MIB: Size = Size(1024 * 1024);
}

impl Mul<u64> for Size {
    type Output = Size;

    fn mul(self, times: u64) -> Size {
        Size(self.0 * times)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, A_SHARE, parse_share)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = |number: i64| match u64::try_from(number) {
            Ok(bytes) => Ok(Size(bytes)),
            Err(_) => Err(format!("{number} is less than nothing; write {A_SIZE}")),
        };
        text_or_number(deserializer, A_SIZE, parse_size, Some(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a digest", parse_digest)
    }
}

impl<'de> Deserialize<'de> for DigestOrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a digest", parse_digest_or_none)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, A_NETWORK, parse_network)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrSome<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrSome<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrSome::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrSome::Some(values))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_number_and_one_unit() {
        let cases = [
            ("250ms", Ok(250)),
            ("5s", Ok(5_000)),
            ("1.5s", Ok(1_500)),
            ("10m", Ok(600_000)),
            ("1h", Ok(3_600_000)),
            ("0s", Ok(0)),
            ("5", Err("\"5\" has no unit; write \"5s\"")),
            ("1.5", Err("\"1.5\" has no unit; write \"1.5s\"")),
            ("", Err("\"\" is not a duration such as \"5s\"")),
            ("s", Err("\"s\" is not a duration such as \"5s\"")),
            ("-5s", Err("\"-5s\" is not a duration such as \"5s\"")),
            (".5s", Err("\".5s\" is not a duration such as \"5s\"")),
            ("5.s", Err("\"5.s\" is not a duration such as \"5s\"")),
            ("1.2.3s", Err("\"1.2.3s\" is not a duration such as \"5s\"")),
            ("1h30m", Err("\"1h30m\" has a unit that is not known; known are ms, s, m, h, as in \"1s\"")),
            ("5 s", Err("\"5 s\" has a unit that is not known; known are ms, s, m, h, as in \"5s\"")),
            ("9000h", Err("\"9000h\" is too long; write at most \"8784h\"")),
            ("99999999999999999999999h", Err("\"99999999999999999999999h\" is too long; write at most \"8784h\"")),
        ];
        for (text, expected) in cases {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(parse_duration(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn a_size_is_binary_or_decimal_as_its_unit_says() {
        let cases = [
            ("123B", Ok(123)),
            ("64KiB", Ok(65_536)),
            ("1.5KiB", Ok(1_536)),
            ("32MiB", Ok(33_554_432)),
            ("1GiB", Ok(1_073_741_824)),
            ("64KB", Ok(64_000)),
            ("1MB", Ok(1_000_000)),
            ("2GB", Ok(2_000_000_000)),
            ("32", Err("\"32\" has no unit; write \"32MiB\"")),
            ("MiB", Err("\"MiB\" is not a size such as \"32MiB\"")),
            (
                "32mb",
                Err("\"32mb\" has a unit that is not known; \
                     known are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB, as in \"32MiB\""),
            ),
            ("99999999999TiB", Err("\"99999999999TiB\" is too large")),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size(text), expected.map(Size).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn a_digest_is_64_hex_digits_and_never_shown() {
        let hex = "00ff10Ab".repeat(8);
        let digest = parse_digest(&hex).expect("a digest");
        assert_eq!(digest.0[..4], [0x00, 0xff, 0x10, 0xab]);
        assert_eq!(format!("{digest:?}"), "Digest(…)");
        for wrong in ["", "00", &hex[1..], &"é".repeat(32), &"0g".repeat(32)] {
            assert_eq!(parse_digest(wrong), Err(NO_DIGEST.to_owned()));
        }
    }

    #[test]
    fn a_single_address_is_the_network_of_itself() {
        let cases = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("::1", Some("::1/128")),
            ("10.0.0.0/33", None),
            ("example.com", None),
        ];
        for (text, expected) in cases {
            let network = parse_network(text).ok().map(|Network(net)| net.to_string());
            assert_eq!(network.as_deref(), expected, "{text}");
        }
    }
}
