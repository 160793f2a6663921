use super::*;

#[test]
fn lanes_do_what_scalars_do() {
    let a: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
    let b: Vec<f32> = (0..16).map(|i| 3.0 - 0.5 * i as f32).collect();
    let (va, vb) = (F32x16::load(&a), F32x16::load(&b));
    let check = |v: F32x16, f: &dyn Fn(f32, f32) -> f32| {
        let mut out = [0f32; 16];
        v.store(&mut out);
        for i in 0..16 {
            assert_eq!(out[i], f(a[i], b[i]), "lane {i}");
        }
    };
    check(va + vb, &|a, b| a + b);
    check(va - vb, &|a, b| a - b);
    check(va * vb, &|a, b| a * b);
    check(va.max(vb), &|a, b| a.max(b));
    check(va.max(F32x16::splat(f32::NAN)).max(vb), &|_, b| b);
    let mut out = [0f32; 16];
    va.max(F32x16::splat(f32::NAN)).store(&mut out);
    assert!(out.iter().all(|v| v.is_nan()));
    check(va.mul_add(vb, F32x16::splat(2.0)), &|a, b| a * b + 2.0);
}

#[test]
fn exponentials_and_folds() {
    let mut x: Vec<f32> = (-8800..=8800).map(|i| i as f32 * 0.01 + 1e-4).collect();
    x.resize(x.len().next_multiple_of(16), 0.0);
    for x in x.chunks(16) {
        let mut y = [0f32; 16];
        F32x16::load(x).exp().store(&mut y);
        for (x, y) in x.iter().zip(y) {
            let want = f64::from(*x).exp();
            assert!(
                (f64::from(y) - want).abs() <= 2.4e-7 * want + if *x < -87.3 { want } else { 0.0 },
                "e^{x}: {y}, want {want}"
            );
        }
    }
    let odd = [f32::NEG_INFINITY, -1e30, f32::NAN, 0.0, 1.0];
    let mut y = [0f32; 16];
    F32x16::load_partial(&odd).exp().store(&mut y);
    assert!(y[0] == 0.0 && y[1] == 0.0 && y[2].is_nan() && y[3] == 1.0 && y[5] == 1.0);
    let v: Vec<f32> = (0..16).map(|i| (i * 7 % 16) as f32 - 20.0).collect();
    assert_eq!((F32x16::load(&v).sum(), F32x16::load(&v).largest()), (-200.0, -5.0));
}

#[test]
fn transposed_square() {
    let rows = std::array::from_fn(|i| {
        let row: [f32; 16] = std::array::from_fn(|j| (100 * i + j) as f32);
        F32x16::load(&row)
    });
    for (i, v) in F32x16::transpose(rows).into_iter().enumerate() {
        let mut out = [0f32; 16];
        v.store(&mut out);
        assert_eq!(out, std::array::from_fn(|j| (100 * j + i) as f32));
    }
}

#[test]
fn partial_runs_stay_inside() {
    for n in 0..50 {
        let src: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
        let mut dst = vec![-1f32; n + 2];
        copy(&mut dst[1..n + 1], &src);
        assert_eq!(&dst[1..n + 1], &src[..]);
        assert_eq!((dst[0], dst[n + 1]), (-1.0, -1.0));
        zero(&mut dst[1..n + 1]);
        assert!(dst[1..n + 1].iter().all(|&v| v == 0.0));
        assert_eq!((dst[0], dst[n + 1]), (-1.0, -1.0));
    }
}
