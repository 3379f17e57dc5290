use std::io::ErrorKind;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};

use super::*;

/// A peer that reads one request, answers with fixed bytes, and reports what it was asked.
async fn peer_that_answers(answer: impl AsRef<[u8]>) -> (PeerAddr, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let address = PeerAddr::new(listener.local_addr().expect("address")).expect("peer");
    let (asked, question) = oneshot::channel();
    let answer = answer.as_ref().to_vec();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("connection");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                break;
            }
            request.push(byte[0]);
        }
        asked
            .send(String::from_utf8_lossy(&request).into_owned())
            .expect("test waits");
        if let Err(error) = stream.write_all(&answer).await {
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ),
                "{error}"
            );
        }
    });
    (address, question)
}

async fn read(mut body: NarBody) -> Result<Vec<u8>, PeerError> {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

#[tokio::test]
async fn a_narinfo_is_fetched_from_the_address_itself() {
    let (peer, question) =
        peer_that_answers("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let body = Client::new()
        .expect("client")
        .narinfo(peer, "local/x.narinfo")
        .await
        .expect("narinfo")
        .read(10)
        .await
        .expect("body");
    assert_eq!(body, "hello");
    let question = question.await.expect("asked");
    assert!(
        question.starts_with("GET /local/x.narinfo HTTP/1.1\r\n"),
        "{question}"
    );
    assert!(
        question.contains(&format!("host: {peer}\r\n")),
        "{question}"
    );
}

#[tokio::test]
async fn a_narinfo_beyond_the_limit_is_refused_announced_or_not() {
    let client = Client::new().expect("client");
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n0123456789012345",
    ] {
        let (peer, _question) = peer_that_answers(answer).await;
        let narinfo = client.narinfo(peer, "x").await.expect("narinfo");
        let error = narinfo.read(10).await.expect_err("too long");
        assert!(
            matches!(error, PeerError::Length { expected: 10, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (target, mut target_asked) =
        peer_that_answers("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (peer, _question) = peer_that_answers(format!(
        "HTTP/1.1 302 Found\r\nlocation: http://{target}/\r\ncontent-length: 0\r\n\r\n"
    ))
    .await;
    let error = Client::new()
        .expect("client")
        .narinfo(peer, "x")
        .await
        .expect_err("redirect");
    assert!(
        matches!(
            error,
            PeerError::Status {
                status: StatusCode::FOUND,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        target_asked.try_recv().is_err(),
        "the redirect was followed"
    );
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_late() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let peer = PeerAddr::new(listener.local_addr().expect("address")).expect("peer");
    let error = Client::new()
        .expect("client")
        .narinfo(peer, "x")
        .await
        .expect_err("silence");
    assert!(matches!(error, PeerError::Late { .. }), "{error}");
}

#[tokio::test]
async fn a_nar_is_opened_at_any_byte() {
    let client = Client::new().expect("client");
    let partial = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 4-9/10\r\ncontent-length: 6\r\n\r\n456789";
    let whole = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n0123456789";
    for answer in [partial, whole] {
        let (peer, question) = peer_that_answers(answer).await;
        let body = client
            .nar(peer, "nar/x.nar", 4..10, 10)
            .await
            .expect("open");
        assert_eq!(read(body).await.expect("bytes"), b"456789");
        assert!(
            question
                .await
                .expect("asked")
                .contains("range: bytes=4-9\r\n")
        );
    }
}

#[tokio::test]
async fn a_range_may_end_before_the_nar_does() {
    let client = Client::new().expect("client");
    let partial = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 2-4/10\r\ncontent-length: 3\r\n\r\n234";
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789";
    for answer in [partial, whole] {
        let (peer, _question) = peer_that_answers(answer).await;
        let body = client.nar(peer, "nar/x.nar", 2..5, 10).await.expect("open");
        assert_eq!(read(body).await.expect("bytes"), b"234");
    }
}

#[tokio::test]
async fn a_nar_of_another_length_or_other_bytes_is_an_error() {
    let client = Client::new().expect("client");
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n01234567890",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n012345678",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n012",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n012345678",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n01234567890",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 3-9/10\r\ncontent-length: 7\r\n\r\n3456789",
        "HTTP/1.1 206 Partial Content\r\ncontent-length: 10\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 10\r\n\r\n0123456789",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (peer, _question) = peer_that_answers(answer).await;
        let result = match client.nar(peer, "nar/x.nar", 0..10, 10).await {
            Ok(body) => read(body).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(result.is_err(), "{answer:?} was taken");
    }
}

/// Takes connections and answers none of the first `unanswered` ones.
async fn peer_that_answers_after(unanswered: usize) -> PeerAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let peer = PeerAddr::new(listener.local_addr().expect("address")).expect("peer");
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("connection");
            if open.len() >= unanswered {
                let mut request = [0; 16];
                stream.read_exact(&mut request).await.expect("request");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                stream.write_all(answer).await.expect("answer");
            }
            open.push(stream);
        }
    });
    peer
}

#[tokio::test]
async fn a_request_without_an_answer_gets_two_others_beside_it() {
    let client = Client::new().expect("client");
    for unanswered in [1, 2] {
        let peer = peer_that_answers_after(unanswered).await;
        let began = std::time::Instant::now();
        let narinfo = client.narinfo(peer, "x").await.expect("narinfo");
        let body = narinfo.read(10).await.expect("body");
        assert_eq!(body, "hello");
        let least = ANOTHER_CONNECTION_AFTER * unanswered as u32;
        let took = began.elapsed();
        assert!(
            (least..least + Duration::from_millis(300)).contains(&took),
            "{took:?}"
        );
    }
    let peer = peer_that_answers_after(1).await;
    let began = std::time::Instant::now();
    let body = client.nar(peer, "x", 0..5, 5).await.expect("NAR");
    assert_eq!(read(body).await.expect("bytes"), b"hello");
    assert!(began.elapsed() < Duration::from_millis(400));
}

#[tokio::test]
async fn a_peer_is_reachable_when_it_answers_anything() {
    let client = Client::new().expect("client");
    let (peer, _question) =
        peer_that_answers("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
    assert!(client.is_reachable(peer).await);
    assert!(!client.is_reachable(peer_that_answers_after(9).await).await);
}
