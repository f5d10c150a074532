//! Crashes at every point.
