//! What spreads connections over the replicas of a service: those that say that they are ready, as a
//! Kubernetes Service does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::http::Http;

/// How often a replica is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Ends with the runtime.
pub struct Balancer {
    /// Where it listens.
    pub url: String,
}

struct Replica {
    port: u16,
    is_ready: AtomicBool,
}

impl Balancer {
    /// In front of replicas on these ports.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn before(ports: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let replicas = ports.iter().map(|port| Replica {
            port: *port,
            is_ready: AtomicBool::new(false),
        });
        let replicas: Arc<Vec<Replica>> = Arc::new(replicas.collect());
        for nth in 0..replicas.len() {
            tokio::spawn(ask(Arc::clone(&replicas), nth));
        }
        tokio::spawn(async move {
            let turn = AtomicUsize::new(0);
            while let Ok((client, _)) = listener.accept().await {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connection(client, Arc::clone(&replicas), turn));
            }
        });
        Self {
            url: format!("http://{address}"),
        }
    }
}

async fn ask(replicas: Arc<Vec<Replica>>, nth: usize) {
    let http = Http::default();
    let replica = &replicas[nth];
    let url = format!("http://127.0.0.1:{}/ready", replica.port);
    loop {
        let asked = tokio::time::timeout(Duration::from_secs(3), http.try_get(&url)).await;
        let is_ready = matches!(asked, Ok(Ok(answer)) if answer.status == 200);
        replica.is_ready.store(is_ready, Ordering::Relaxed);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// The next replica in turn that takes the connection; one that does not is passed over.
async fn connection(mut client: TcpStream, replicas: Arc<Vec<Replica>>, turn: usize) {
    let in_turn = || (0..replicas.len()).map(|n| &replicas[(turn + n) % replicas.len()]);
    let ready = in_turn().filter(|replica| replica.is_ready.load(Ordering::Relaxed));
    // When none is ready, their answers say why.
    for replica in ready.chain(in_turn()) {
        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", replica.port)).await {
            // A connection that breaks is the caller's to notice.
            let _ = copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}
