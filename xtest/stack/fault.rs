//! A TCP proxy that can be told to misbehave, for what a deployment does when Postgres or Redis is
//! down, slow or lying.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does to connections, those that are open already included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Cuts them, and every new one.
    Down,
    /// Takes everything and passes nothing on.
    Silent,
    /// Holds every chunk back for a while.
    Slow(Duration),
    /// Answers with other bytes than the server's.
    Lying,
}

impl Fault {
    /// Every way to misbehave.
    pub const ALL: [Self; 4] = [
        Self::Down,
        Self::Silent,
        Self::Slow(Duration::from_millis(150)),
        Self::Lying,
    ];
}

/// The proxy; ends with the runtime.
#[derive(Debug)]
pub struct FaultProxy {
    /// Where it listens.
    pub address: SocketAddr,
    fault: watch::Sender<Fault>,
}

impl FaultProxy {
    /// In front of this server.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (fault, told) = watch::channel(Fault::None);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server.clone(), told.clone()));
            }
        });
        Self { address, fault }
    }

    /// From now on.
    pub fn does(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn connection(client: TcpStream, server: String, mut fault: watch::Receiver<Fault>) {
    if *fault.borrow() == Fault::Down {
        return;
    }
    let Ok(server) = TcpStream::connect(&server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let questions = pump(from_client, to_server, fault.clone(), false);
    let answers = pump(from_server, to_client, fault.clone(), true);
    tokio::select! {
        // One direction alone is of no use to either protocol.
        () = questions => {}
        () = answers => {}
        _ = fault.wait_for(|fault| *fault == Fault::Down) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
    answers: bool,
) {
    let mut chunk = vec![0u8; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if fault
            .wait_for(|fault| *fault != Fault::Silent)
            .await
            .is_err()
        {
            return;
        }
        let does = *fault.borrow();
        match does {
            Fault::Slow(by) => tokio::time::sleep(by).await,
            Fault::Lying if answers => chunk[..length].iter_mut().for_each(|byte| *byte ^= 0x55),
            _ => {}
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}
