//! Peers that don't keep to the protocol.

use super::*;
use crate::wire::generated::link::link_client::LinkClient;
use crate::wire::generated::link::link_server::{Link, LinkServer};
use crate::wire::generated::link::{Frame, Hello, Open, Part, RaftFrame, RaftPart, frame, raft_frame};
use crate::wire::generated::{Nothing, WireError as ErrorMessage};
use bytes::Buf;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http2_close_the_connection() {
    let node = Node::start().await;
    let client = node.client();
    let mut noise: u32 = 7;
    for start in ["", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut socket = tokio::net::TcpStream::connect(node.address).await.unwrap();
        let mut bytes = start.as_bytes().to_vec();
        for _ in 0..10_000 {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((noise >> 24) as u8);
        }
        // The server may close before it has read everything.
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        let _ = soon(socket.read_to_end(&mut Vec::new())).await;
        rows(ask(&client, read("echo", vec![])).await.unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_none_cannot_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"220 mail.example.org ESMTP\r\n").await;
        }
    });
    let error = fails(&client, write("echo", vec![])).await;
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, Retry::Later));
}

fn frame(request: u64, kind: frame::Kind) -> Frame {
    Frame { request, kind: Some(kind) }
}

fn greeting(protocol: u32) -> Frame {
    frame(0, frame::Kind::Hello(Hello { protocol, from: 0, to: 0, cluster: bytes::Bytes::new() }))
}

fn piece(bytes: usize, rest: u64, end: bool) -> Part {
    Part { data: vec![0xff; bytes].into(), rest, end }
}

fn open(bytes: usize, rest: u64, end: bool) -> frame::Kind {
    frame::Kind::Open(Open { timeout: 0, part: Some(piece(bytes, rest, end)) })
}

/// Sends frames, already encoded or not, and answers with the status that ends the stream.
async fn closing_status<C>(node: &Node, codec: C, frames: Vec<C::Encode>) -> Status
where
    C: Codec<Decode = Frame> + Send + 'static,
    C::Encode: Send + Sync,
{
    let address = format!("http://{}", node.address);
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    // The stream stays open, so that it is the server who ends it.
    let frames = futures::stream::iter(frames).chain(futures::stream::pending());
    let path = "/shoal.link.Link/Requests".parse().unwrap();
    let mut answers = match grpc.streaming(Request::new(frames), path, codec).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match soon(answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol_close_the_stream_with_the_cause() {
    let node = Node::start().await;
    let client = node.client();
    let error = ErrorMessage::default();
    for (frames, cause) in [
        (vec![frame(1, open(5, 0, true))], "the first frame is no hello"),
        (vec![greeting(99)], "version 99"),
        (vec![greeting(1), greeting(1)], "no place here"),
        (vec![greeting(1), Frame { request: 1, kind: None }], "an unknown kind"),
        (vec![greeting(1), frame(1, frame::Kind::Failed(error))], "no place here"),
        (vec![greeting(1), frame(1, frame::Kind::Open(Open::default()))], "without its first piece"),
        (vec![greeting(1), frame(0, open(5, 5, false))], "the number 0"),
        (vec![greeting(1), frame(1, open(5, 5, false)), frame(1, open(5, 5, false))], "the number 1"),
        (vec![greeting(1), frame(1, open(5, u64::MAX, false))], "without bounds"),
        (vec![greeting(1), frame(1, open(5, 1 << 40, false))], "a message of more than"),
        (vec![greeting(1), frame(1, open(5, 0, false))], "several messages"),
        (vec![greeting(1), frame(1, open(9, 0, true))], "malformed request"),
        (vec![greeting(1), frame(1, open(0, 0, true))], "a request of an unknown kind"),
        (
            vec![greeting(1), frame(1, open(5, 9, false)), frame(1, frame::Kind::Part(piece(5, 9, false)))],
            "14 bytes of a message where 9 were to come",
        ),
        (
            vec![greeting(1), frame(1, open(5, 5, false)), frame(1, frame::Kind::Credit(u32::MAX))],
            "more credit than",
        ),
        (vec![greeting(1), frame(1, open(MAX_FRAME, 0, true))], "too large"),
    ] {
        let codec = tonic_prost::ProstCodec::<Frame, Frame>::default();
        let status = closing_status(&node, codec, frames).await;
        assert!(status.message().contains(cause), "{cause}: {status}");
        rows(ask(&client, read("echo", vec![])).await.unwrap()).await.unwrap();
    }
}

/// Sends bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Frame;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(dst, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        src.advance(src.remaining());
        Ok(Some(Frame::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_no_protobuf_close_the_stream_with_the_cause() {
    let node = Node::start().await;
    let hello = prost::Message::encode_to_vec(&greeting(1));
    for garbage in [vec![0xff; 30], vec![0x0a], vec![0x1a, 0x03, 0xff, 0xff, 0xff]] {
        let status = closing_status(&node, Raw, vec![hello.clone(), garbage]).await;
        assert!(status.message().contains("failed to decode Protobuf message"), "{status}");
    }
    rows(ask(&node.client(), read("echo", vec![])).await.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn raft_frames_that_break_the_protocol_close_the_stream_with_the_cause() {
    let node = Node::start().await;
    let frame = |kind| RaftFrame { kind: Some(kind) };
    let hello = |from| {
        frame(raft_frame::Kind::Hello(Hello { protocol: 1, from, to: 2, cluster: bytes::Bytes::new() }))
    };
    let part = |group, rest| frame(raft_frame::Kind::Part(RaftPart { group, data: vec![1; 5].into(), rest }));
    for (frames, cause) in [
        (vec![part(1, 0)], "no hello"),
        (vec![hello(0)], "from nobody"),
        (vec![hello(1), hello(1)], "second hello"),
        (vec![hello(1), RaftFrame { kind: None }], "unknown kind"),
        (vec![hello(1), part(1, 9), part(2, 4)], "different messages"),
        (vec![hello(1), part(1, 1 << 40)], "out of bounds"),
    ] {
        let mut client = LinkClient::connect(format!("http://{}", node.address)).await.unwrap();
        let frames = futures::stream::iter(frames).chain(futures::stream::pending());
        let status = match client.raft(frames).await {
            Ok(response) => soon(response.into_inner().message()).await.unwrap_err(),
            Err(status) => status,
        };
        assert!(status.message().contains(cause), "{cause}: {status}");
    }
}

/// A server that says hello, waits for a request, and then sends what it was given.
struct Impostor(Mutex<Vec<Frame>>);

#[tonic::async_trait]
impl Link for Impostor {
    type RequestsStream = BoxStream<Result<Frame, Status>>;
    type RaftStream = BoxStream<Result<Nothing, Status>>;

    async fn requests(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        let answers = std::mem::take(&mut *lock(&self.0));
        let requests = request.into_inner();
        let after = futures::stream::once(async move {
            let mut requests = requests;
            while let Ok(Some(frame)) = requests.message().await {
                if matches!(frame.kind, Some(frame::Kind::Open(_))) {
                    break;
                }
            }
            futures::stream::iter(answers).map(Ok).chain(futures::stream::unfold(requests, hold))
        });
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(greeting(1))]).chain(after.flatten()))))
    }

    async fn raft(&self, _: Request<Streaming<RaftFrame>>) -> Result<Response<Self::RaftStream>, Status> {
        Err(Status::unimplemented("no"))
    }
}

/// Keeps a stream open without another word.
async fn hold(_: Streaming<Frame>) -> Option<(Result<Frame, Status>, Streaming<Frame>)> {
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_breaks_the_protocol_loses_the_connection_with_the_cause() {
    let answer = |part| frame(1, frame::Kind::Part(part));
    for (answers, cause) in [
        (vec![Frame { request: 1, kind: None }], "an unknown kind"),
        (vec![Frame { request: 99, kind: None }], "an unknown kind"),
        (vec![frame(1, open(1, 0, true))], "only a client sends"),
        (vec![frame(1, frame::Kind::End(Nothing {}))], "an answer without a message"),
        (vec![answer(piece(9, 0, true))], "failed to decode"),
        (vec![answer(piece(0, 0, true))], "an answer of an unknown kind"),
        (vec![answer(piece(5, 7, false)), answer(piece(5, 7, false))], "where 7 were to come"),
        (vec![frame(1, frame::Kind::Failed(ErrorMessage::default()))], "is not an SQLSTATE"),
        // A register's answer to an execute: field 17, an empty message.
        (vec![answer(Part { data: vec![0x8a, 0x01, 0x00].into(), rest: 0, end: true })], "another request"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(LinkServer::new(Impostor(Mutex::new(answers))))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(server);
        let error = fails(&client, write("echo", vec![])).await;
        assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, Retry::Unknown));
        assert!(error.message.contains(cause), "{cause}: {error}");
    }
}
