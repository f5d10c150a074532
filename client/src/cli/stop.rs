//! Being told to stop: SIGINT (130), SIGTERM (143), SIGHUP (129, the terminal has gone).
use std::io;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Which signal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`.
    Terminate,
    /// The terminal has gone.
    Hangup,
}

impl Signal {
    /// 128 and the signal's number.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Listens for them.
#[derive(Debug)]
pub struct Stop {
    interrupt: Stream,
    terminate: Stream,
    hangup: Stream,
}

impl Stop {
    /// From now on, signals no longer end the program by themselves.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub async fn wait(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }
}
