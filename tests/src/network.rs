//! The network between sites: every connection from one node to another goes through a proxy here, which takes its time and
//! can stop carrying bytes in one direction or in both. Like a real network it never says so: what is cut is merely silent,
//! and flows on when the cut heals.
use crate::limits::{IN_FLIGHT_BYTES, PIECE_BYTES};
use bytes::Bytes;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::{mpsc, watch},
    time::Instant,
};

/// One direction between two places.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    delay: Duration,
    cut: bool,
}

/// Each way, by where it begins and where it ends.
type Ways = HashMap<(String, String), Arc<watch::Sender<Way>>>;

/// Ways between named places. Dropping it ends every connection through it.
#[derive(Debug)]
pub struct Network {
    runtime: Option<Runtime>,
    ways: Mutex<Ways>,
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// Fast and whole.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("start the network");
        Self { runtime: Some(runtime), ways: Mutex::default() }
    }

    fn way(&self, from: &str, to: &str) -> Arc<watch::Sender<Way>> {
        let mut ways = self.ways.lock().expect("nobody panics with this lock");
        Arc::clone(ways.entry((from.to_owned(), to.to_owned())).or_insert_with(|| Arc::new(watch::channel(Way::default()).0)))
    }

    /// An address at which `from` reaches what listens at `target`, which is at `to`.
    ///
    /// # Panics
    /// If no port is free.
    pub fn listen(&self, from: &str, to: &str, target: SocketAddr) -> SocketAddr {
        let runtime = self.runtime.as_ref().expect("the network is up");
        let (there, back) = (self.way(from, to), self.way(to, from));
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
        let address = listener.local_addr().expect("a port");
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target, there.subscribe(), back.subscribe()));
            }
        });
        address
    }

    /// Half of a round trip, each way.
    pub fn round_trip(&self, a: &str, b: &str, round_trip: Duration) {
        for (from, to) in [(a, b), (b, a)] {
            self.way(from, to).send_modify(|way| way.delay = round_trip / 2);
        }
    }

    /// Nothing gets from one to the other any more; the other way is as it was.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.way(from, to).send_modify(|way| way.cut = true);
    }

    /// Nothing gets from either to the other any more.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Everything flows again.
    pub fn heal(&self) {
        for way in self.ways.lock().expect("nobody panics with this lock").values() {
            way.send_modify(|way| way.cut = false);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn carry(near: TcpStream, target: SocketAddr, there: watch::Receiver<Way>, back: watch::Receiver<Way>) {
    // A connection needs both ways to come about, as with SYN and its answer.
    if open(&mut there.clone()).await.is_err() || open(&mut back.clone()).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
        return;
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // When one way ends, the connection ends: what a closed socket means is not ours to translate.
    tokio::select! {
        () = one_way(near_in, far_out, there) => {}
        () = one_way(far_in, near_out, back) => {}
    }
}

/// Waits until the way is open; an error means that the network is gone.
async fn open(way: &mut watch::Receiver<Way>) -> Result<Way, watch::error::RecvError> {
    way.wait_for(|way| !way.cut).await.map(|way| *way)
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT_BYTES / PIECE_BYTES);
    let reading = {
        let way = way.clone();
        async move {
            let mut piece = vec![0; PIECE_BYTES];
            while let Ok(length @ 1..) = from.read(&mut piece).await {
                let arrives = Instant::now() + way.borrow().delay;
                let bytes = Bytes::copy_from_slice(piece.get(..length).unwrap_or_default());
                if queue.send((arrives, bytes)).await.is_err() {
                    return;
                }
            }
        }
    };
    let writing = async move {
        while let Some((arrives, piece)) = due.recv().await {
            tokio::time::sleep_until(arrives).await;
            if open(&mut way).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Somebody who repeats everything.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        address
    }

    fn says_back(stream: &mut std::net::TcpStream, word: &[u8]) -> std::io::Result<()> {
        stream.write_all(word)?;
        let mut back = vec![0; word.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, word);
        Ok(())
    }

    #[test]
    fn what_is_cut_is_silent_and_flows_on_when_it_heals() {
        let network = Network::new();
        let address = network.listen("a", "b", echo());
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        says_back(&mut stream, b"hello").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        for (from, to) in [("a", "b"), ("b", "a")] {
            network.cut_one_way(from, to);
            stream.write_all(b"lost?").unwrap();
            let mut back = [0; 5];
            assert!(stream.read_exact(&mut back).is_err(), "{from} to {to} is cut");
            network.heal();
            stream.set_read_timeout(None).unwrap();
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"lost?");
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
    }

    #[test]
    fn a_round_trip_takes_its_time_and_bytes_keep_their_order() {
        let network = Network::new();
        let address = network.listen("a", "b", echo());
        network.round_trip("a", "b", Duration::from_millis(40));
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let start = std::time::Instant::now();
        says_back(&mut stream, &crate::data::bytes(&mut crate::data::chance(1), 500_000)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(40), "nothing is faster than its delay");
    }
}
