//! What holds on a machine without a GPU.

use super::*;

static MODULE: Module = Module { name: "none.cu", source: "" };
static KERNEL: Kernel = Kernel {
    module: &MODULE,
    entry: "rms_norm",
    origin: "RmsNorm.y, std/norm.llm:12",
    threads: 32,
    shared_bytes: 64,
};

fn ones() -> Tensor {
    Tensor::f_ones([2, 3], (Kind::Float, Device::Cpu)).expect("ones")
}

#[test]
fn a_kernel_takes_no_tensor_of_the_cpu_and_needs_one() {
    let x = ones();
    let mut text = String::new();
    for args in [vec![Arg::I32(1), Arg::Tensor(&x)], vec![Arg::F32(1.0)]] {
        text += &launch(&KERNEL, [1, 1, 1], &args).expect_err("refused").rendered();
    }
    text += &launch_with(&KERNEL, [1, 1, 1], 65, &[]).expect_err("refused").rendered();
    insta::assert_snapshot!("arguments", text);
}

#[test]
fn the_reference_runs_on_the_cpu_and_in_other_kinds_than_bf16() {
    let x = ones();
    let fused: Way<'_> = &|_, _| panic!("the kernel runs");
    let reference: Way<'_> = &|inputs, _| Ok(vec![inputs[0].f_neg()?]);
    for like in [ones(), ones().f_to_kind(Kind::BFloat16).expect("casts")] {
        let out = either(&KERNEL, &[&x], &like, fused, reference).expect("runs");
        assert_eq!(out[0].double_value(&[1, 2]), -1.0);
    }
}

#[test]
fn arguments_are_passed_as_the_driver_reads_them() {
    assert_eq!(value(&Arg::I32(-1)), 0xffff_ffff);
    assert_eq!(value(&Arg::I64(-1)), u64::MAX);
    assert_eq!(value(&Arg::F32(1.0)), 0x3f80_0000);
    let x = ones();
    assert_eq!(value(&Arg::Tensor(&x)), x.data_ptr() as u64);
}

/// A source that threads have begun to compile is waited for, and is what compiling it gives; one that does not compile is an
/// error where its code is asked for.
#[test]
fn sources_are_compiled_ahead() {
    static SOURCES: [Module; 3] = [
        Module { name: "a.cu", source: "extern \"C\" __global__ void a(int* x) { *x = 1; }" },
        Module { name: "b.cu", source: "extern \"C\" __global__ void b(int* x) { *x = 22; }" },
        Module { name: "c.cu", source: "extern \"C\" __global__ void c(int* x) { *x = y; }" },
    ];
    let nvrtc = match lightc_kernels::Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return eprintln!("SKIPPED: nothing was compiled: {error}"),
    };
    let modules: Vec<&'static Module> = SOURCES.iter().collect();
    // No driver has this number, and the cache may know the two that compile from an earlier run.
    let n = driver::begin(-1, &modules);
    assert!(n == 1 || n == 3, "{n} sources");
    for module in &SOURCES[..2] {
        let wanted = nvrtc.compile(module.name, module.source).expect("compiles").cubin;
        assert_eq!(driver::code(module, -1).expect("compiles"), wanted);
    }
    let error = driver::code(&SOURCES[2], -1).expect_err("does not compile").to_string();
    assert!(error.contains("c.cu"), "{error}");
}

#[test]
fn a_map_is_of_a_gpu_tensor() {
    let error = tensor_map(&ones(), 64).expect_err("refused").to_string();
    assert!(error.contains("contiguous bf16 tensor of rank 4"), "{error}");
}

/// What each error says, with its help.
#[test]
fn errors_of_devices() {
    let (entry, origin) = (KERNEL.entry, KERNEL.origin);
    let name = || "NVIDIA A100-SXM4-80GB".to_owned();
    let errors = [
        DeviceError::NoDriver,
        DeviceError::NoGpu { ordinal: 1, detail: "the driver sees 1".into() },
        DeviceError::Architecture { ordinal: 0, name: name(), found: "8.0".into() },
        DeviceError::Memory {
            ordinal: 0,
            name: name(),
            what: "training".into(),
            needed: 120,
            free: 70,
            total: 80,
            ledger: "\n  gradients  50\n  optimizer  70".into(),
        },
        DeviceError::NoCompiler("libnvrtc.so.13 is not found: no such file".into()),
        DeviceError::Compile { entry, origin, detail: "norm.cu(4): error".into() },
        DeviceError::Driver { entry, origin, call: "cuLaunchKernel", code: "CUDA_ERROR_X".into() },
        DeviceError::NoLibtorchCuda("libtorch_cuda.so: cannot open".into()),
        DeviceError::Argument { entry, origin, detail: "argument 0 is on Cpu".into() },
        DeviceError::Red { n_red: 1, n_checked: 42, first: "`rms_norm` (x): off".into() },
    ];
    let codes: Vec<&str> =
        errors.iter().map(DeviceError::code).chain([error::CACHE_NOTE]).collect();
    assert_eq!(codes, error::CODES);
    let text: String =
        errors.into_iter().map(|error| crate::Error::from(error).rendered()).collect();
    insta::assert_snapshot!("errors", text);
}

/// Without a driver this is the first error that a user meets; with one, the GPU is described.
#[test]
fn a_machine_without_a_driver_is_told_so() {
    match device(0) {
        Ok(device) => assert_eq!(device, Device::Cuda(0)),
        Err(error) => {
            let code = error.code();
            assert!(["E1301", "E1302", "E1303"].contains(&code), "{}", error.rendered());
            eprintln!("SKIPPED: no kernel can run here: {error}");
        }
    }
}
