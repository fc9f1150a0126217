//! An agent that sends back whatever it receives on port 7.
//!
//! `cargo run -p pilot --example echo -- 127.0.0.1:9000 my-agent`
use pilot::{Node, NodeConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let node = Node::start(NodeConfig {
        registry: args.next().unwrap_or("127.0.0.1:9000".into()),
        hostname: args.next(),
        identity_path: Some("echo-identity.json".into()),
        public: true,
        ..NodeConfig::default()
    })
    .await?;
    println!("listening on {}:7", node.address());
    let mut listener = node.listen(7).await.ok_or("port 7 is taken")?;
    while let Some(stream) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = stream.split();
            while let Some(bytes) = reader.read().await {
                if writer.write(bytes).await.is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}
