//! The `afar` program: everything is in the library.
use std::process::ExitCode;

/// A put moves a megabyte per message; glibc would map and unmap each of them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ExitCode::from(afar::cli::main(std::env::args_os()))
}
