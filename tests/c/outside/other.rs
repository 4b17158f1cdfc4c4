//! A Rust library of someone else's, for beside_rust.c.

#[unsafe(no_mangle)]
pub extern "C" fn other_catches_a_panic(number: i32) -> i32 {
    let thread = std::thread::spawn(move || {
        let caught = std::panic::catch_unwind(|| {
            std::panic::resume_unwind(Box::new(number));
        });
        *caught.unwrap_err().downcast::<i32>().unwrap()
    });
    thread.join().unwrap() + 1
}
