//! The mock upstream: answers every request with the same bytes, on a thread of its own, so that
//! its work does not wait behind the load generator's.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// A running upstream; it ends with the process.
pub struct Upstream {
    port: u16,
    served: Arc<AtomicU64>,
}

impl Upstream {
    /// Listens on a free port.
    pub fn start(bytes: usize) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(("0.0.0.0", 0)).context("no free port for the upstream")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let served = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&served);
        let body = body(bytes);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || runtime.block_on(accept(listener, body, count)))
            .context("no thread for the upstream")?;
        Ok(Self { port, served })
    }

    /// The port that it listens on.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Requests that reached it.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

/// `{"ok":true}` and blanks up to the size asked for.
fn body(bytes: usize) -> Bytes {
    let mut text = "{\"ok\":true}".to_owned();
    while text.len() < bytes {
        text.push(' ');
    }
    Bytes::from(text)
}

async fn accept(listener: TcpListener, body: Bytes, served: Arc<AtomicU64>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        // A refused option only costs latency, which then shows in the result.
        drop(stream.set_nodelay(true));
        let (body, served) = (body.clone(), Arc::clone(&served));
        tokio::spawn(async move {
            let answer = service_fn(|_: Request<Incoming>| {
                served.fetch_add(1, Ordering::Relaxed);
                let mut response = Response::new(Full::new(body.clone()));
                response.headers_mut().insert(
                    http::header::CONTENT_TYPE,
                    http::HeaderValue::from_static("application/json"),
                );
                std::future::ready(Ok::<_, Infallible>(response))
            });
            // The Gateway hangs up when it likes: that is not ours to report.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await,
            );
        });
    }
}
