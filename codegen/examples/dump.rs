use lightc_dsl::source::*;
fn main() {
    let mut loader = MapLoader::default();
    for d in ["std", "lightning", "tiny"] {
        for e in std::fs::read_dir(format!("models/{d}")).unwrap() {
            let p = e.unwrap().path();
            if p.extension().is_some_and(|e| e == "llm") {
                let n = p.strip_prefix("models").unwrap().display().to_string();
                loader = loader.with(n, std::fs::read_to_string(&p).unwrap());
            }
        }
    }
    let (name, text) = loader.load("", "lightning/lightning.llm").unwrap();
    let (program, _, d) = lightc_dsl::resolve::load_program(&name, &text, &loader);
    assert!(d.is_empty());
    let m = program.resolve_stage(&std::env::args().nth(1).unwrap()).unwrap();
    let c =
        lightc_codegen::pipeline::compile_for(&m, lightc_codegen::schedule::Target::Sm90a).unwrap();
    println!("{}", lightc_codegen::ir::text::print(&c.module));
}
