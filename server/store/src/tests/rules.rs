//! One test (or several) per rule of the consistency page that this crate has to keep.
