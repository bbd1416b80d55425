//! A small HTTP server for what a deployment asks of others: it answers as a test tells it, from before
//! there is a deployment.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// A whole request.
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    /// Empty when there is none of this name.
    pub fn header(&self, name: &str) -> &str {
        let mut of_name = self.headers.iter();
        let found = of_name.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Where it listens. It ends with the process.
pub fn answering(answer: impl Fn(Asked) -> (u16, Vec<u8>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve(stream, &*answer));
        }
    });
    url
}

/// One request after another, until the other side is done.
fn serve(stream: TcpStream, answer: &dyn Fn(Asked) -> (u16, Vec<u8>)) -> Option<()> {
    let mut answers = stream.try_clone().ok()?;
    let mut requests = BufReader::new(stream);
    loop {
        let (status, body) = answer(read(&mut requests)?);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        answers.write_all(head.as_bytes()).ok()?;
        answers.write_all(&body).ok()?;
    }
}

fn read(requests: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    requests.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        requests.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut asked = Asked {
        method,
        path,
        headers,
        body: Vec::new(),
    };
    asked.body = vec![0; asked.header("content-length").parse().unwrap_or(0)];
    requests.read_exact(&mut asked.body).ok()?;
    Some(asked)
}
