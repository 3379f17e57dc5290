//! HTTP/1.1 as bytes on a socket, so that a test can say exactly what it sends and see exactly
//! what it gets.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::PATIENCE;

/// An answer, as far as it came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether all of the announced body came.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a line of a narinfo.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let text = self.text();
        let mut lines = text.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }
}

/// A connection that is kept open between requests.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends `METHOD PATH` with these header lines, and a Host.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[&str]) -> io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        self.send(head.as_bytes())?;
        self.answer(method == "HEAD")
    }

    /// Reads one answer; of one that ends early, what came.
    pub(crate) fn answer(&mut self, head_only: bool) -> io::Result<Answer> {
        let mut answer = self.head()?;
        if head_only {
            return Ok(answer);
        }
        let length = answer
            .header("content-length")
            .and_then(|length| length.parse().ok());
        let limit = length.unwrap_or(u64::MAX);
        let read = (&mut self.stream).take(limit).read_to_end(&mut answer.body);
        answer.complete = match length {
            Some(length) => read.is_ok() && answer.body.len() as u64 == length,
            None => read.is_ok(),
        };
        Ok(answer)
    }

    /// Reads the head of an answer.
    pub(crate) fn head(&mut self) -> io::Result<Answer> {
        let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let first = self.line()?;
        let status = first
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5));
        let status = status
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| broken(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Answer {
                    status,
                    headers,
                    body: Vec::new(),
                    complete: true,
                });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads exactly this much of a body.
    pub(crate) fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads until the other side ends or cuts the connection.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A cut connection is an end too.
        self.stream.read_to_end(&mut bytes).ok();
        bytes
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// One request on a connection of its own.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Answer {
    let mut connection = Connection::open(address).expect("connection");
    connection
        .ask(method, path, headers)
        .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[])
}

/// The same with less patience.
pub(crate) fn get_within(address: SocketAddr, path: &str, limit: Duration) -> Answer {
    let mut connection = Connection::open(address).expect("connection");
    connection
        .stream
        .get_mut()
        .set_read_timeout(Some(limit))
        .expect("timeout");
    connection
        .ask("GET", path, &[])
        .unwrap_or_else(|error| panic!("{path}: {error} (limit {limit:?})"))
}

/// Sends bytes that need not be HTTP.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> io::Result<Answer> {
    let mut connection = Connection::open(address)?;
    connection.send(bytes)?;
    connection.answer(bytes.starts_with(b"HEAD"))
}
