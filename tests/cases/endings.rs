//! How machines end: guests of a few instructions, written as bytes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::leaks::none;
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Finished, guest, run, small};

/// Where the tiny kernels are loaded.
const BASE: u64 = 0x100_0000;

/// An ELF of one segment, `code`, that is entered at its first byte.
fn elf(code: &[u8]) -> Vec<u8> {
    let (header, segment) = (64u64, 56u64);
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    file.extend(1u32.to_le_bytes());
    file.extend([BASE, header, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1u32, 5].map(u32::to_le_bytes).concat()); // PT_LOAD, readable, executable
    let size = code.len() as u64;
    let offset = header + segment;
    file.extend([offset, BASE, BASE, size, size, 1].map(u64::to_le_bytes).concat());
    file.extend(code);
    file
}

/// Code that prints `text` on the early console.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee])); // mov al, byte; out dx, al
    code
}

/// `run` with the kernel and initial file system given.
fn boot(kernel: Option<&Path>, initrd: Option<&Path>, seconds: u32) -> Finished {
    let mut command = Command::new("bulkhead");
    command.args(["run", "--rm", small(), "true"]);
    command.env("BULKHEAD_BOOT_TIMEOUT", seconds.to_string());
    for (variable, path) in [("BULKHEAD_KERNEL", kernel), ("BULKHEAD_INITRD", initrd)] {
        if let Some(path) = path {
            command.env(variable, path);
        }
    }
    run(command)
}

/// The end of a machine whose kernel is `code` behind a line of text.
fn end_of(code: &[u8]) -> Finished {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("vmlinux");
    fs::write(&kernel, elf(&[&print("tiny kernel speaking\n"), code].concat())).unwrap();
    boot(Some(&kernel), None, 20)
}

fn quickly(ended: &Finished) {
    assert!(ended.took < Duration::from_secs(15), "`{}` took {:?}", ended.command, ended.took);
}

#[test]
fn each_end_of_a_machine_has_a_reason_of_its_own() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        // lidt of an empty table; ud2.
        let triple_fault =
            [0x0f, 0x01, 0x1d, 0x02, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let ended =
            end_of(&triple_fault).fails_saying(125, &["triple-faulted", "tiny kernel speaking"]);
        quickly(&ended);
        // mov al, 0xfe; out 0x64, al.
        let ended = end_of(&[0xb0, 0xfe, 0xe6, 0x64])
            .fails_saying(125, &["guest kernel panicked", "tiny kernel speaking"]);
        quickly(&ended);
        // mov dx, 0x600; out dx, al.
        let ended = end_of(&[0x66, 0xba, 0x00, 0x06, 0xee])
            .fails_saying(125, &["did not start", "the guest powered off"]);
        quickly(&ended);
        // mov eax, 0xd8000000; jmp rax: code where no memory is.
        let ended = end_of(&[0xb8, 0, 0, 0, 0xd8, 0xff, 0xe0])
            .fails_saying(125, &["KVM gave up on vCPU 0", "bulkhead doctor"]);
        quickly(&ended);
    });
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        // hlt for ever; jmp to itself.
        for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
            fs::write(&kernel, elf(&[&print("dozing off\n"), code].concat())).unwrap();
            let words = ["never answered within 4 s", "BULKHEAD_BOOT_TIMEOUT", "| dozing off"];
            let ended = boot(Some(&kernel), None, 4).fails_saying(125, &words);
            quickly(&ended);
        }
        // The real kernel with an init that only sleeps.
        let busybox = fs::read("/bin/busybox").unwrap();
        let script = b"#!/busybox sh\n/busybox echo init speaking\nexec /busybox sleep 1000\n";
        let initrd = directory.path().join("initramfs.cpio");
        fs::write(&initrd, cpio(&[("busybox", &busybox), ("init", script)])).unwrap();
        let ended =
            boot(None, Some(&initrd), 12).fails_saying(125, &["never answered within 12 s"]);
        assert!(ended.took < Duration::from_secs(25), "{:?}", ended.took);
    });
}

#[test]
fn a_kernel_panic_is_told_with_the_kernels_last_words() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let initrd = directory.path().join("initramfs.cpio");
        // No init at all; an init that ends.
        fs::write(&initrd, cpio(&[("nothing", b"")])).unwrap();
        boot(None, Some(&initrd), 60).fails_saying(
            125,
            &["guest kernel panicked", "Kernel panic - not syncing: ", "root fs"],
        );
        let busybox = fs::read("/bin/busybox").unwrap();
        let script = b"#!/busybox sh\nexit 3\n";
        fs::write(&initrd, cpio(&[("busybox", &busybox), ("init", script)])).unwrap();
        boot(None, Some(&initrd), 60).fails_saying(
            125,
            &["guest kernel panicked", "Attempted to kill init", "exitcode=0x00000300"],
        );
    });
}

/// An initial file system of programs in its root, and /dev/console.
fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        let size = content.len() as u32;
        let fields =
            [0, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        for part in [&[name.as_bytes(), b"\0"].concat(), content] {
            archive.extend(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    };
    add("dev", 0o040_755, (0, 0), b"");
    add("dev/console", 0o020_600, (5, 1), b"");
    for (name, content) in files {
        add(name, 0o100_755, (0, 0), content);
    }
    add("TRAILER!!!", 0, (0, 0), b"");
    archive
}
