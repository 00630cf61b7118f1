use lightc_dsl::source::{Loader, join_path};
struct Files;
impl Loader for Files {
    fn load(&self, from: &str, path: &str) -> Result<(String, String), String> {
        let name = join_path(from, path);
        let text = std::fs::read_to_string(&name).map_err(|e| e.to_string())?;
        Ok((name, text))
    }
}
fn render(d: &[lightc_dsl::diag::Diag], s: &lightc_dsl::source::Sources, _: bool) -> String {
    d.iter().map(|d| { let (l,c)=s.line_column(d.primary.span); format!("{} {}:{}:{} {} help {:?} rel {:?}\n", d.code, s.get(d.primary.span.source).unwrap().name, l, c, d.message, d.help, d.related.iter().map(|r| (s.line_column(r.span), r.text.clone())).collect::<Vec<_>>()) }).collect()
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&args[1]).unwrap();
    let t0 = std::time::Instant::now();
    let (program, sources, diags) = lightc_dsl::resolve::load_program(&args[1], &text, &Files);
    if !diags.is_empty() { eprintln!("{}", render(&diags, &sources, false)); }
    let model = match program.resolve_stage(&args[2]) { Ok(m) => m, Err(d) => { eprintln!("{}", render(&d, &sources, false)); return; } };
    eprintln!("resolve {:?}", t0.elapsed());
    let compiled = match lightc_codegen::pipeline::compile(&model) { Ok(m) => m, Err(d) => { eprintln!("{}", render(&d, &sources, false)); return; } };
    eprintln!("compile {:?}", t0.elapsed());
    let table = lightc_codegen::analysis::param_table(&compiled.module).unwrap();
    eprintln!("{}", serde_json::to_string(&table.stored).unwrap());
    let origin = lightc_codegen::emit::Origin { source: args[1].clone(), source_hash: "0".into(), compiler: "0.1.0".into() };
    match args[3].as_str() {
        "ir" => { let t = lightc_codegen::ir::text::print(&compiled.module); println!("{t}"); let m2 = lightc_codegen::ir::text::parse(&t).unwrap(); assert_eq!(lightc_codegen::ir::text::print(&m2), t); }
        "rust" => println!("{}", lightc_codegen::emit::emit_stage(&compiled, &origin).unwrap()),
        _ => {}
    }
    eprintln!("done {:?}", t0.elapsed());
}
