//! Compiles kernels/*.cu: for the simulated device (feature `sim`) as C++.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "sim")]
    sim::build();
}

/// Kernels whose name one would have to know elsewhere too: none. Every file of kernels/ is taken.
#[cfg(feature = "sim")]
fn kernel_files() -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir("kernels").expect("kernels/").map(|e| e.expect("an entry of kernels/").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    files.sort();
    files
}

#[cfg(feature = "sim")]
mod sim {
    use std::fmt::Write;
    use std::path::Path;

    /// Each kernel file becomes one C++ file that includes it and defines a symbol; a table names all symbols, so that the
    /// linker leaves none out.
    pub fn build() {
        println!("cargo:rerun-if-changed=kernels");
        let out = std::env::var("OUT_DIR").expect("OUT_DIR");
        let root = std::env::current_dir().expect("the package's folder");
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").define("UPRES_SIM", None).include("kernels").warnings(true).extra_warnings(true);
        // As nvcc is told: a product and a sum are fused only where the kernel says so. Exceptions cannot cross coroutines.
        build.flag("-ffp-contract=off").flag("-fno-exceptions").flag("-fno-rtti").flag("-Werror");
        build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-psabi").opt_level(2).debug(false);
        build.file("kernels/sim/runtime.cpp");
        let mut table = String::from("extern \"C\" {\n");
        let mut sum = String::from("0");
        for file in super::kernel_files() {
            let stem = file.file_stem().expect("a name").to_str().expect("a name in UTF-8").to_string();
            let wrapper = Path::new(&out).join(format!("sim_{stem}.cpp"));
            let source = format!(
                "#include \"{}\"\nextern \"C\" {{ extern const int upres_sim_file_{stem}; const int upres_sim_file_{stem} = 1; }}\n",
                root.join(&file).display()
            );
            write_if_changed(&wrapper, &source);
            build.file(&wrapper);
            writeln!(table, "extern const int upres_sim_file_{stem};").expect("a string");
            write!(sum, " + upres_sim_file_{stem}").expect("a string");
        }
        write!(table, "int upres_sim_link() {{ return {sum}; }}\n}}\n").expect("a string");
        let file = Path::new(&out).join("sim_table.cpp");
        write_if_changed(&file, &table);
        build.file(&file).compile("upres_sim");
    }

    fn write_if_changed(path: &Path, text: &str) {
        if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
            return;
        }
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
