//! tmp
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().unwrap().get())
        .enable_all()
        .build()
        .unwrap();
    rt.block_on(async {
        let mut s = switchboard::config::Settings::default();
        s.server.listen = vec![
            std::env::args()
                .nth(1)
                .unwrap_or("127.0.0.1:8080".into())
                .parse()
                .unwrap(),
        ];
        if let Ok(x) = std::env::var("STRATEGY") {
            if x == "router" {
                s.routing.strategy = switchboard::config::Strategy::Router
            }
        }
        let app = switchboard::app::App::build(s).await.unwrap();
        app.run(std::future::pending()).await;
    });
}
