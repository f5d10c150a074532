//! stub
use crate::{
    cli::{output::Out, stop::Stop},
    error::Error,
};
/// stub
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// s
    #[arg(long)]
    pub serve: bool,
}
pub(crate) async fn run(_: &Out, _: Arguments) -> Result<u8, Error> {
    Ok(0)
}
pub(crate) async fn serve(_: &Out, _: Arguments, _: &mut Stop) -> Result<u8, Error> {
    Ok(0)
}
