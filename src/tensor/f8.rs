//! 8-bit floats: a sign, an exponent, a mantissa. bf16 represents each value of each kind exactly,
//! so a table of 256 bf16 values is enough to read them.

use super::Dtype;

/// Codes that are not finite numbers.
enum Special {
    /// The largest exponent, as in IEEE 754: infinity with mantissa 0, else NaN.
    LargestExponent,
    /// All ones is NaN, and there is no infinity: "fn".
    AllOnes,
    /// Negative zero is NaN, and there is no infinity: "fnuz".
    NegativeZero,
}

/// Returns the bf16 bits of every f8 code of `dtype`, or `None` if it is not such a float.
pub(super) fn table(dtype: Dtype) -> Option<&'static [u16; 256]> {
    static E4M3: [u16; 256] = make(3, 7, Special::AllOnes);
    static E5M2: [u16; 256] = make(2, 15, Special::LargestExponent);
    static E4M3_FNUZ: [u16; 256] = make(3, 8, Special::NegativeZero);
    static E5M2_FNUZ: [u16; 256] = make(2, 16, Special::NegativeZero);
    match dtype {
        Dtype::F8E4M3 => Some(&E4M3),
        Dtype::F8E5M2 => Some(&E5M2),
        Dtype::F8E4M3Fnuz => Some(&E4M3_FNUZ),
        Dtype::F8E5M2Fnuz => Some(&E5M2_FNUZ),
        _ => None,
    }
}

const fn make(mantissa_bits: u32, bias: i32, special: Special) -> [u16; 256] {
    const INFINITY: u16 = 0x7F80;
    const NAN: u16 = 0x7FC0;
    let mut table = [0; 256];
    let mut code = 0;
    while code < table.len() {
        let exponent = (code & 0x7F) >> mantissa_bits;
        let mantissa = code & ((1 << mantissa_bits) - 1);
        // Exponent 0 has the scale of exponent 1, without the leading one.
        let (shift, significand) = match exponent {
            0 => (1, mantissa),
            _ => (exponent as i32, mantissa | 1 << mantissa_bits),
        };
        let power = 127 + shift - bias - mantissa_bits as i32;
        let value = significand as f32 * f32::from_bits((power as u32) << 23);
        let magnitude = match special {
            Special::LargestExponent if exponent == 0x7F >> mantissa_bits => match mantissa {
                0 => INFINITY,
                _ => NAN,
            },
            Special::AllOnes if code & 0x7F == 0x7F => NAN,
            Special::NegativeZero if code == 0x80 => NAN,
            _ => (value.to_bits() >> 16) as u16,
        };
        table[code] = magnitude | ((code >> 7) as u16) << 15;
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(dtype: Dtype, code: u8) -> f32 {
        dtype.value(&[code], 0)
    }

    /// Values from the tables of the OCP specification, and of the fnuz paper (arXiv 2206.02915).
    #[test]
    fn values_of_the_specifications() {
        let two = |power| 2f32.powi(power);
        for (dtype, values) in [
            (
                Dtype::F8E4M3,
                &[
                    (0x00, 0.0),
                    (0x38, 1.0),
                    (0xB9, -1.125),
                    (0x7E, 448.0),
                    (0x08, two(-6)),
                    (0x07, 0.875 * two(-6)),
                    (0x81, -two(-9)),
                ][..],
            ),
            (
                Dtype::F8E5M2,
                &[
                    (0x3C, 1.0),
                    (0x7B, 57344.0),
                    (0x04, two(-14)),
                    (0x03, 0.75 * two(-14)),
                    (0x81, -two(-16)),
                    (0x7C, f32::INFINITY),
                    (0xFC, f32::NEG_INFINITY),
                ],
            ),
            (
                Dtype::F8E4M3Fnuz,
                &[(0x40, 1.0), (0x7F, 240.0), (0xFF, -240.0), (0x01, two(-10))],
            ),
            (
                Dtype::F8E5M2Fnuz,
                &[
                    (0x40, 1.0),
                    (0x7F, 57344.0),
                    (0x04, two(-15)),
                    (0x01, two(-17)),
                ],
            ),
        ] {
            for &(code, expected) in values {
                assert_eq!(value(dtype, code), expected, "{dtype} {code:#04x}");
            }
        }
    }

    #[test]
    fn codes_that_are_no_numbers() {
        let nans = |dtype| (0..=255).filter(move |&code| value(dtype, code).is_nan());
        let codes = |dtype| nans(dtype).collect::<Vec<u8>>();
        assert_eq!(codes(Dtype::F8E4M3), [0x7F, 0xFF]);
        assert_eq!(codes(Dtype::F8E5M2), [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]);
        assert_eq!(codes(Dtype::F8E4M3Fnuz), [0x80]);
        assert_eq!(codes(Dtype::F8E5M2Fnuz), [0x80]);
        assert!(value(Dtype::F8E4M3, 0x80).is_sign_negative());
    }

    /// e5m2 is the upper half of an f16.
    #[test]
    fn e5m2_is_half_an_f16() {
        for code in 0..=255 {
            let half = half::f16::from_le_bytes([0, code]).to_f32();
            let found = value(Dtype::F8E5M2, code);
            assert!(
                found == half || found.is_nan() && half.is_nan(),
                "{code:#04x}"
            );
        }
    }

    #[test]
    fn widening_is_the_same_in_any_parts() {
        let codes: Vec<u8> = (0..=255).collect();
        let widen = |codes: &[u8]| {
            let mut out = vec![0xAA; 2 * codes.len()];
            let read = |_, bytes: &mut [u8]| {
                bytes.copy_from_slice(codes);
                Ok::<(), ()>(())
            };
            Dtype::F8E5M2.read_floats(&mut out, read).unwrap();
            out
        };
        let whole = widen(&codes);
        assert_eq!(
            half::bf16::from_le_bytes([whole[120], whole[121]]).to_f32(),
            1.0
        );
        for cut in 0..=256 {
            let (first, second) = codes.split_at(cut);
            assert_eq!([widen(first), widen(second)].concat(), whole);
        }
    }
}
