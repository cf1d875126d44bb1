//! The one source of chance: a seed goes in, the same numbers come out on every machine and with every compiler.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014). Each part of a
//! simulation draws from a stream of its own, so that one part that draws more doesn't change what the others get.

use std::ops::Range;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another stream of the same seed.
    pub fn stream(seed: u64, name: &str, number: u64) -> Self {
        let mut state = seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d);
        for byte in name.bytes() {
            state = Self(state ^ u64::from(byte)).draw();
        }
        Self(state)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range, all alike.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start).max(1);
        range.start + self.draw() % width
    }

    /// True so many times of a thousand.
    pub fn permille(&mut self, times: u64) -> bool {
        self.within(0..1000) < times
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() {
            return None;
        }
        of.get(usize::try_from(self.within(0..of.len() as u64)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_same_seed_draws_the_same() {
        // The reference implementation's first number for the state 1234567.
        assert_eq!(Random::new(1_234_567).draw(), 6_457_827_717_110_365_317);
        let (mut one, mut two) = (Random::stream(7, "network", 1), Random::stream(7, "network", 2));
        assert_ne!(one.draw(), two.draw());
        assert!((0..1000).all(|_| (5..8).contains(&one.within(5..8))));
    }
}
