//! Content for tests: random, so that every piece of it is found on a disk at one place only, and from a seed, so that a
//! failure can be had again.
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The seed of this run: `AFAR_TEST_SEED`, or one that is made up and printed.
pub fn seed() -> u64 {
    let seed = std::env::var("AFAR_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    eprintln!("AFAR_TEST_SEED={seed}");
    seed
}

/// A source of chance.
pub fn chance(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// So many bytes that compress to nothing and occur nowhere else.
pub fn bytes(chance: &mut ChaCha8Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    chance.fill_bytes(&mut bytes);
    bytes
}

/// As `b3sum` prints it.
pub fn b3sum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
