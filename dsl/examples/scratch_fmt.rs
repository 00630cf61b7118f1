fn main() {
    let path = std::env::args().nth(1).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    match lightc_dsl::format::format(&text) {
        Ok(t) => {
            print!("{t}");
            let again = lightc_dsl::format::format(&t).unwrap();
            assert_eq!(t, again);
        }
        Err(d) => println!("{d:?}"),
    }
}
