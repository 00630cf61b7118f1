fn main() {
    let path = std::env::args().nth(1).unwrap();
    struct L;
    impl lightc_dsl::source::Loader for L {
        fn load(&self, from: &str, path: &str) -> Result<(String, String), String> {
            let name = lightc_dsl::source::join_path(from, path);
            std::fs::read_to_string(&name)
                .map(|t| (name, t))
                .map_err(|e| e.to_string())
        }
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let t = std::time::Instant::now();
    let (p, s, d) = lightc_dsl::resolve::load_program(&path, &text, &L);
    println!("load {:?}", t.elapsed());
    let (m, d2) = p.check();
    println!("check {:?}", t.elapsed());
    for d in d.iter().chain(&d2) {
        let (l, c) = s.line_column(d.primary.span);
        println!(
            "{}:{l}:{c} {} {} [{}]",
            s.get(d.primary.span.source).unwrap().name,
            d.code,
            d.message,
            d.primary.text
        );
        for r in &d.related {
            let (l, c) = s.line_column(r.span);
            println!("   {l}:{c} {}", r.text);
        }
        if let Some(h) = &d.help {
            println!("   help {h}");
        }
    }
    for m in m {
        println!("MODEL {} root {:?}", m.name, m.root);
        for (i, x) in m.instances.iter().enumerate() {
            println!(
                "  {i} {} {:?} {:?}",
                x.block,
                x.sizes
                    .iter()
                    .map(|(a, b)| format!("{a}={b}"))
                    .collect::<Vec<_>>(),
                x.numbers
            );
            for p in &x.params {
                println!(
                    "      param {} {:?} {:?}",
                    p.name,
                    p.axes
                        .iter()
                        .map(|a| format!("{}={}", a.name, a.size))
                        .collect::<Vec<_>>(),
                    p.init
                );
            }
            for s in &x.subs {
                println!("      sub {} {:?}", s.name, s.kind);
            }
        }
    }
}
