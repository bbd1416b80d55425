use super::*;
use crate::Tasks;
use axum::routing::get;
use futures_util::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

const SOON: Duration = Duration::from_secs(5);

struct Fixture {
    address: SocketAddr,
    tasks: Tasks,
    release: Arc<Notify>,
    entered: Arc<Notify>,
}

async fn serve(limits: Limits) -> Fixture {
    let (release, entered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gate, inside) = (release.clone(), entered.clone());
    let slow = move || {
        let (gate, inside) = (gate.clone(), inside.clone());
        async move {
            inside.notify_one();
            gate.notified().await;
            "done"
        }
    };
    let breaks = || async {
        let parts = [Ok("part"), Err(io::Error::other("upstream gone"))];
        Body::from_stream(stream::iter(parts))
    };
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/slow", get(slow))
        .route("/breaks", get(breaks))
        .route(
            "/endless",
            get(|| async {
                Body::from_stream(stream::repeat_with(|| io::Result::Ok(vec![0u8; 65536])))
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    tasks.spawn(
        "server",
        Server::new(listener, router, limits).serve(tasks.stop()),
    );
    Fixture {
        address,
        tasks,
        release,
        entered,
    }
}

impl Fixture {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

/// Everything that comes until the end of the connection or of patience.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await;
    let _ = read.expect("the connection did not end");
    String::from_utf8_lossy(&all).into_owned()
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut part = [0u8; 1024];
    while !String::from_utf8_lossy(&all).contains("hello") {
        let read = tokio::time::timeout(SOON, stream.read(&mut part))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&part[..read]);
    }
    String::from_utf8(all).unwrap()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let fixture = serve(Limits::default()).await;
    let mut stream = fixture.connect().await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(17 * 1024)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 431 "));
    let mut stream = fixture.connect().await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(15 * 1024)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_slow_head_is_cut_and_an_idle_connection_is_not() {
    let limits = Limits {
        header_read: Duration::from_millis(700),
        ..Limits::default()
    };
    let fixture = serve(limits).await;
    let mut idle = fixture.connect().await;
    idle.write_all(GET).await.unwrap();
    answer(&mut idle).await;

    let mut silent = fixture.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    let mut slow = fixture.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost").await.unwrap();
    assert_eq!(rest(&mut slow).await, "");

    // Both took longer than a head may, and the idle connection still serves.
    idle.write_all(GET).await.unwrap();
    answer(&mut idle).await;
    idle.write_all(b"GET /").await.unwrap();
    assert_eq!(rest(&mut idle).await, "");
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_closes_idle_connections() {
    let fixture = serve(Limits::default()).await;
    let mut idle = fixture.connect().await;
    idle.write_all(GET).await.unwrap();
    answer(&mut idle).await;
    let mut busy = fixture.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    fixture.entered.notified().await;
    fixture.tasks.stop().cancel();
    assert_eq!(rest(&mut idle).await, "");
    fixture.release.notify_one();
    assert!(rest(&mut busy).await.ends_with("done"));
    assert!(fixture.tasks.shutdown(SOON).await.is_empty());
    assert!(TcpStream::connect(fixture.address).await.is_err());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let fixture = serve(Limits {
        drain: Duration::from_millis(20),
        ..Limits::default()
    })
    .await;
    let mut busy = fixture.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    fixture.entered.notified().await;
    assert!(fixture.tasks.shutdown(SOON).await.is_empty());
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn a_response_that_broke_does_not_look_complete() {
    let fixture = serve(Limits::default()).await;
    let mut stream = fixture.connect().await;
    stream
        .write_all(b"GET /breaks HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let seen = rest(&mut stream).await;
    assert!(seen.ends_with("part\r\n"), "no last chunk: {seen}");

    let mut stream = fixture.connect().await;
    stream
        .write_all(b"GET /breaks HTTP/1.0\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut all = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut() {
    let limits = Limits {
        write_idle: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = serve(limits).await;
    let mut stream = fixture.connect().await;
    stream
        .write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    stream.read_exact(&mut [0u8; 1]).await.unwrap();
    // The stop waits for the response, which only the stalled writes can end.
    assert!(fixture.tasks.shutdown(SOON).await.is_empty());
    let mut all = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .unwrap();
}
