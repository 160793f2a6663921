//! Compiles kernels/*.cu: for the simulated device (feature `sim`) as C++, for GPUs (features `cuda`, `cuda12`) by
//! nvcc.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(any(feature = "sim", feature = "cuda-driver"))]
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "sim")]
    sim::build();
    #[cfg(feature = "cuda-driver")]
    cuda::build();
}

/// Every file of kernels/.
#[cfg(any(feature = "sim", feature = "cuda-driver"))]
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

    /// Each kernel file becomes one C++ file that includes it and defines a symbol; a table names all symbols, so that
    /// the linker leaves none out.
    pub fn build() {
        let out = std::env::var("OUT_DIR").expect("OUT_DIR");
        let root = std::env::current_dir().expect("the package's folder");
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").define("UPRES_SIM", None).include("kernels").warnings(true).extra_warnings(true);
        // As nvcc is told: a product and a sum are fused only where the kernel says so. Exceptions cannot cross
        // coroutines.
        build.flag("-ffp-contract=off").flag("-fno-exceptions").flag("-fno-rtti").flag("-Werror");
        build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-psabi").opt_level(2).debug(false);
        build.file("kernels/sim/runtime.cpp");
        let mut table = String::from("extern \"C\" {\n");
        let mut sum = String::from("0");
        for file in super::kernel_files().into_iter().chain(["kernels/sim/faults.cu".into()]) {
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

#[cfg(feature = "cuda-driver")]
mod cuda {
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Where tools/cuda_toolkit.sh puts nvcc.
    const TOOLKIT: &str = "upres/cuda-13.0";
    /// Compute capabilities with machine code, and the first toolkit (major) that no longer has them.
    const ARCHITECTURES: [(u32, u32); 7] = [(61, 13), (70, 13), (75, 99), (80, 99), (86, 99), (89, 99), (90, 99)];

    /// What ptxas says of a kernel on one architecture.
    struct Resources {
        file: usize,
        kernel: String,
        arch: String,
        registers: u32,
        spill_bytes: u32,
        stack_bytes: u32,
    }

    pub fn build() {
        for name in
            ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "UPRES_CUDA_DIR", "UPRES_CUDA_ARCH", "UPRES_STUB_KERNELS"]
        {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let out = PathBuf::from(std::env::var("OUT_DIR").expect("OUT_DIR"));
        let files = super::kernel_files();
        let stems: Vec<String> = files
            .iter()
            .map(|f| f.file_stem().and_then(|s| s.to_str()).expect("a name in UTF-8").to_string())
            .collect();
        if std::env::var_os("UPRES_STUB_KERNELS").is_some_and(|v| !v.is_empty() && v != "0") {
            // For lints: no image, no kernel.
            write(&out.join("cuda_images.rs"), &source(&[], &[], (0, 0)));
            return;
        }
        let nvcc = nvcc();
        let major = version(&nvcc);
        let archs = architectures(major);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(files.len()) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(file) = files.get(i) else { return };
                        let resources = compile(&nvcc, i, file, &out.join(format!("{}.fatbin", stems[i])), &archs);
                        done.lock().expect("no thread panicked").extend(resources);
                    }
                });
            }
        });
        let mut resources = done.into_inner().expect("no thread panicked");
        resources.sort_by(|a, b| (&a.kernel, &a.arch).cmp(&(&b.kernel, &b.arch)));
        write(&out.join("kernels.md"), &table(&resources, &stems));
        println!("cargo:rustc-env=UPRES_KERNEL_TABLE={}", out.join("kernels.md").display());
        let kernels: BTreeMap<&str, usize> = resources.iter().map(|r| (r.kernel.as_str(), r.file)).collect();
        let kernels: Vec<(&str, usize)> = kernels.into_iter().collect();
        let oldest = archs.iter().min().copied().unwrap_or(0);
        write(&out.join("cuda_images.rs"), &source(&stems, &kernels, (oldest / 10, oldest % 10)));
    }

    /// Rust source of the tables of src/device/gpu/cuda.
    fn source(stems: &[String], kernels: &[(&str, usize)], oldest: (u32, u32)) -> String {
        // The driver reads headers of 64-bit numbers: images begin where those may.
        let mut s = String::from("#[repr(C, align(64))]\npub(super) struct Image<T: ?Sized>(pub(super) T);\n");
        s += "pub(super) static IMAGES: &[(&str, &Image<[u8]>)] = &[\n";
        for stem in stems {
            let file = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))");
            writeln!(s, "    ({stem:?}, &Image(*{file})),").expect("a string");
        }
        s += "];\npub(super) static KERNELS: &[(&str, usize)] = &[\n";
        for (kernel, file) in kernels {
            writeln!(s, "    ({kernel:?}, {file}),").expect("a string");
        }
        writeln!(s, "];\npub(super) const OLDEST: (std::ffi::c_int, std::ffi::c_int) = {oldest:?};").expect("a string");
        s
    }

    /// From NVCC, CUDA_HOME, PATH, or the folder of tools/cuda_toolkit.sh.
    fn nvcc() -> PathBuf {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(path) = var("NVCC") {
            assert!(path.is_file(), "NVCC={}: no such file", path.display());
            return path;
        }
        let home = |name: &str| var(name).map(|home| home.join("bin/nvcc"));
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")));
        let own = var("UPRES_CUDA_DIR").or_else(|| cache.map(|c| c.join(TOOLKIT))).map(|d| d.join("bin/nvcc"));
        let candidates = [home("CUDA_HOME"), home("CUDA_PATH")].into_iter().flatten();
        let candidates = candidates.chain(std::env::split_paths(&on_path).map(|d| d.join("nvcc"))).chain(own);
        let candidates: Vec<PathBuf> = candidates.collect();
        candidates.iter().find(|p| p.is_file()).cloned().unwrap_or_else(|| {
            panic!(
                "\n\nno nvcc: looked at NVCC, CUDA_HOME, CUDA_PATH, PATH and ~/.cache/{TOOLKIT}.\n\
                 Run tools/cuda_toolkit.sh (no root needed), or set CUDA_HOME to a CUDA toolkit.\n"
            )
        })
    }

    fn run(command: &mut Command) -> Output {
        command.output().unwrap_or_else(|e| panic!("\n\n{command:?} does not run: {e}\n"))
    }

    /// The major version of the toolkit; it must be that of the libraries which the feature asks for.
    fn version(nvcc: &Path) -> u32 {
        let output = run(Command::new(nvcc).arg("--version"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let release = text.split("release ").nth(1).and_then(|s| s.split('.').next()).and_then(|s| s.parse().ok());
        let major: u32 =
            release.unwrap_or_else(|| panic!("\n\n{} --version says no release:\n{text}\n", nvcc.display()));
        let wanted = if cfg!(feature = "cuda") { 13 } else { 12 };
        // An older toolkit's images run on a newer driver; a newer one's may not.
        assert!(
            major <= wanted,
            "\n\n{} is of CUDA {major}, this build is for CUDA {wanted}: build with the other of the features cuda and cuda12\n",
            nvcc.display()
        );
        major
    }

    /// From UPRES_CUDA_ARCH (`75,90`), or all that the toolkit has.
    fn architectures(major: u32) -> Vec<u32> {
        let Some(wanted) = std::env::var("UPRES_CUDA_ARCH").ok().filter(|v| !v.is_empty()) else {
            return ARCHITECTURES.iter().filter(|(_, end)| major < *end).map(|(arch, _)| *arch).collect();
        };
        let parse = |s: &str| {
            s.trim().parse().unwrap_or_else(|_| panic!("\n\nUPRES_CUDA_ARCH={wanted}: want numbers like 75,90\n"))
        };
        wanted.split(',').map(parse).collect()
    }

    /// Machine code for each architecture and PTX for what comes after the newest.
    fn compile(nvcc: &Path, index: usize, file: &Path, to: &Path, archs: &[u32]) -> Vec<Resources> {
        let mut command = Command::new(nvcc);
        command.args(["-std=c++17", "-O3", "-fatbin", "-Ikernels", "-lineinfo", "-Werror", "all-warnings"]);
        // A product and a sum are fused only where the kernel says so: box arithmetic equals the CPU's to the bit.
        command.args(["-fmad=false", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-Xfatbin", "-compress-all"]);
        if archs.iter().any(|arch| *arch < 75) {
            command.arg("-Wno-deprecated-gpu-targets"); // a warning of nvcc 12.8 on, and warnings are errors
        }
        let newest = archs.iter().max();
        for arch in archs {
            let code = if Some(arch) == newest { format!("[sm_{arch},compute_{arch}]") } else { format!("sm_{arch}") };
            command.arg("-gencode").arg(format!("arch=compute_{arch},code={code}"));
        }
        command.arg("-o").arg(to).arg(file);
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let words: Vec<&str> = text.lines().filter(|l| !l.contains("ptxas info")).collect();
        assert!(output.status.success(), "\n\nnvcc failed on {}: {command:?}\n{}\n", file.display(), text);
        let resources = parse(index, &text);
        let spills = resources.iter().filter(|r| r.spill_bytes > 0);
        let spills: Vec<String> =
            spills.map(|r| format!("{} on {}: {} bytes", r.kernel, r.arch, r.spill_bytes)).collect();
        assert!(
            spills.is_empty(),
            "\n\n{}: registers spill:\n{}\n{}\n",
            file.display(),
            spills.join("\n"),
            words.join("\n")
        );
        resources
    }

    /// The words of `ptxas -v`, four lines a kernel.
    fn parse(file: usize, text: &str) -> Vec<Resources> {
        let number = |line: &str, before: &str| -> u32 {
            let head = line.split(before).next().unwrap_or_default();
            head.rsplit(|c: char| !c.is_ascii_digit()).find(|s| !s.is_empty()).and_then(|s| s.parse().ok()).unwrap_or(0)
        };
        let mut all: Vec<Resources> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                let mut quoted = rest.split('\'');
                let kernel = quoted.next().unwrap_or_default().to_string();
                let arch = quoted.nth(1).unwrap_or_default().to_string();
                all.push(Resources { file, kernel, arch, registers: 0, spill_bytes: 0, stack_bytes: 0 });
            } else if let Some(last) = all.last_mut() {
                if line.contains("bytes stack frame") {
                    last.stack_bytes = number(line, " bytes stack frame");
                    last.spill_bytes = number(line, " bytes spill stores") + number(line, " bytes spill loads");
                } else if line.contains("Used ") {
                    last.registers = number(line, " registers");
                }
            }
        }
        all
    }

    /// Registers of each kernel by architecture, as Markdown.
    fn table(resources: &[Resources], stems: &[String]) -> String {
        let mut archs: Vec<&str> = resources.iter().map(|r| r.arch.as_str()).collect();
        archs.sort_unstable();
        archs.dedup();
        let mut s = format!("| kernel | file | {} | stack bytes | spilled bytes |\n|---|---|", archs.join(" | "));
        s += &"---:|".repeat(archs.len() + 2);
        s.push('\n');
        let mut by_kernel: BTreeMap<&str, Vec<&Resources>> = BTreeMap::new();
        for r in resources {
            by_kernel.entry(&r.kernel).or_default().push(r);
        }
        for (kernel, rows) in by_kernel {
            write!(s, "| {kernel} | {}.cu |", stems[rows[0].file]).expect("a string");
            for arch in &archs {
                let registers =
                    rows.iter().find(|r| r.arch == *arch).map_or(String::new(), |r| r.registers.to_string());
                write!(s, " {registers} |").expect("a string");
            }
            let most = |of: fn(&Resources) -> u32| rows.iter().map(|r| of(r)).max().unwrap_or(0);
            writeln!(s, " {} | {} |", most(|r| r.stack_bytes), most(|r| r.spill_bytes)).expect("a string");
        }
        s
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
