//! What Nix 2.8 itself wrote, and values for property tests.

use proptest::prelude::*;

use super::{
    ContentAddress, NarHash, Narinfo, PathInfo, SecretKey, Signature, StoreDir, StorePath,
    content_address::HashAlgorithm,
};

/// Made by `nix-store --generate-binary-cache-key`, for tests only; it is trusted by nobody.
pub(super) const SECRET_KEY: &str =
    "k-1:JFelskMFEwNQrv2IR20iooQnjDTZO072UOeT1pbo6wnYQYMI8SbXnNGdclh67ejnPwRZlaRNBPKRuQixonF06w==";

/// The other half of [`SECRET_KEY`], as Nix wrote it.
pub(super) const PUBLIC_KEY: &str = "k-1:2EGDCPEm15zRnXJYeu3o5z8EWZWkTQTykbkIsaJxdOs=";

/// Store directory of the [`NARINFOS`] that are not in /nix/store.
pub(super) const OTHER_DIR: &str = "/tmp/fmtnix/n/store";

/// Made by `nix copy --to file://...?secret-key=...` and `nix store make-content-addressed`:
/// text with and without references, recursive with and without a reference to itself, a
/// derivation, and the output that it built; compressed and not; all but one signed.
pub(super) const NARINFOS: [&str; 8] = [
    "StorePath: /tmp/fmtnix/n/store/l4pghnv8j9c2vr45wxmy8b29490mngp7-dep\n\
URL: nar/0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1.nar\n\
Compression: none\n\
FileHash: sha256:0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1\n\
FileSize: 120\n\
NarHash: sha256:0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1\n\
NarSize: 120\n\
References: \n\
Sig: k-1:jbIrctG9Uk9+E3pE8ErUUPH/0c1PKtmD4Jf3nAiUTg+OiFYUxwnJ5wrBofW9dUnmiuB5+OSyWsizwVAQZ6hiAA==\n\
CA: fixed:r:sha256:0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1\n",
    "StorePath: /tmp/fmtnix/n/store/mqqaahdyxj8qlzxlks711w659wvy9ivi-selfish.drv\n\
URL: nar/1kw31nqm2v049vwi0b99cvig0jfgzaid7k8baxkxhqrl7lf86dhm.nar\n\
Compression: none\n\
FileHash: sha256:1kw31nqm2v049vwi0b99cvig0jfgzaid7k8baxkxhqrl7lf86dhm\n\
FileSize: 512\n\
NarHash: sha256:1kw31nqm2v049vwi0b99cvig0jfgzaid7k8baxkxhqrl7lf86dhm\n\
NarSize: 512\n\
References: njlb1hcfx5kh07fglnm2mjkgp7vranri-dep\n\
Sig: k-1:FDHj5kWA73haHF4hTlT5E0ZCLBluAqo7rLtI6L9cZYi7EO42vaF3beTdgzG3l0e7i5wuHyCKUAsaTEVc0zgvCw==\n\
CA: text:sha256:0r4nyzd2ajl0xh68y7w5zbqd3gxnkrqln2kchgf8ann8z5zjnyhd\n",
    "StorePath: /tmp/fmtnix/n/store/njlb1hcfx5kh07fglnm2mjkgp7vranri-dep\n\
URL: nar/0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1.nar\n\
Compression: none\n\
FileHash: sha256:0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1\n\
FileSize: 120\n\
NarHash: sha256:0i0g5h0y4w5xf5rynap2x27zaib43xl5qr5wlj9vw83ai7p732m1\n\
NarSize: 120\n\
References: \n\
Sig: k-1:2VcVnjPs41En8D0/sxi3Wv0zLmCfqw0RADCEPPdGh3oUzIcLAa5IzULyM10TifamcqrUQl03I2+loLMPyU0aCw==\n\
CA: text:sha256:13ns0xymhkhgng27kis2x8w05bc8gw6nifqkg7r2npb3z0gfgqwc\n",
    "StorePath: /tmp/fmtnix/n/store/qppsv7l1gyvvskc29d35rx5755pxnmn9-selfish\n\
URL: nar/01nf8b9r6n1nizzl29izw0mgj0rzbl37da1yyzl4fzyb3gkb5fbj.nar\n\
Compression: none\n\
FileHash: sha256:01nf8b9r6n1nizzl29izw0mgj0rzbl37da1yyzl4fzyb3gkb5fbj\n\
FileSize: 232\n\
NarHash: sha256:01nf8b9r6n1nizzl29izw0mgj0rzbl37da1yyzl4fzyb3gkb5fbj\n\
NarSize: 232\n\
References: l4pghnv8j9c2vr45wxmy8b29490mngp7-dep qppsv7l1gyvvskc29d35rx5755pxnmn9-selfish\n\
Sig: k-1:nEjvYHlgBqiTG2UHUtr1uWesmB0KYYNE8HhfmDjV9Lui8VGDE4xn1oIyAPNsAn7uNhIxsOiBe7nR1UKlSSe3Bg==\n\
CA: fixed:r:sha256:1fmdcqxbr6rcys46yxavkdl1wgbfhkyszl15zwmmwaw62cvzj57j\n",
    "StorePath: /tmp/fmtnix/n/store/yvmpwigdq37zxkqnfy68gv91vrva8lij-selfish\n\
URL: nar/06fmhrr6fwp0hnqqwxjjys1fxw1yh0246mmkn8155vwinjijycnd.nar\n\
Compression: none\n\
FileHash: sha256:06fmhrr6fwp0hnqqwxjjys1fxw1yh0246mmkn8155vwinjijycnd\n\
FileSize: 232\n\
NarHash: sha256:06fmhrr6fwp0hnqqwxjjys1fxw1yh0246mmkn8155vwinjijycnd\n\
NarSize: 232\n\
References: njlb1hcfx5kh07fglnm2mjkgp7vranri-dep yvmpwigdq37zxkqnfy68gv91vrva8lij-selfish\n\
Deriver: mqqaahdyxj8qlzxlks711w659wvy9ivi-selfish.drv\n\
Sig: k-1:ewNaNtf/80blisJ7ishFqnEtGRQXR46e+Tg/liKyvuqR/zzFtER6jEeSxk/zdzG8mPo0OyKaEFEALWua6jSqCQ==\n",
    "StorePath: /nix/store/6l9jxq41zvyjng5b4kr2nshgigs44dnl-other\n\
URL: nar/1aav7m4dqysgmdfx4zh1aybrfzkpgnlaj4r1p4in36jr6d408429.nar.xz\n\
Compression: xz\n\
FileHash: sha256:1aav7m4dqysgmdfx4zh1aybrfzkpgnlaj4r1p4in36jr6d408429\n\
FileSize: 136\n\
NarHash: sha256:1fzjkhsk97rqfdvf97ykjw0mf9fvpwaz1jcs76bqj100cdzgxmph\n\
NarSize: 128\n\
References: \n\
CA: text:sha256:0flalf9bykn5p3i7jfk25wcc9yn3hw0s7kyz9lrdpmrybdrnv27d\n",
    "StorePath: /nix/store/gpqllcrw2m0c0y0vxzgi9imc8mblv5jg-outer.txt\n\
URL: nar/09inib0akvbfjhrp155fhsyfnhvkdjidn3fclzcaszzssb20yrpp.nar.xz\n\
Compression: xz\n\
FileHash: sha256:09inib0akvbfjhrp155fhsyfnhvkdjidn3fclzcaszzssb20yrpp\n\
FileSize: 220\n\
NarHash: sha256:02b4abp50nv1nc1w10m27pzn8dwdqk4r6wfkj4n4gbnzqci97wyj\n\
NarSize: 232\n\
References: 6l9jxq41zvyjng5b4kr2nshgigs44dnl-other z5ivr36ksfl8h2zzm29y0q1s4wcl79ic-inner\n\
Sig: k-1:iTS90pE/nbnSFlKFYxpSlgpuOn9S6cDz4KQ/ahhoXM/nEgmw1usabKHi27aFcav9LVHBjiMWBZBpwpirfv7rDg==\n\
CA: text:sha256:10wxy8iikckfbia2c5bxh4avv5hyh1gigb8n05nssr86ci63c4sd\n",
    "StorePath: /nix/store/z5ivr36ksfl8h2zzm29y0q1s4wcl79ic-inner\n\
URL: nar/11ls1h0dsh31ky23kkgf87kc790pzgrxswfy80n835nwhgqxfa53.nar.xz\n\
Compression: xz\n\
FileHash: sha256:11ls1h0dsh31ky23kkgf87kc790pzgrxswfy80n835nwhgqxfa53\n\
FileSize: 136\n\
NarHash: sha256:0xfdk47khrdb2wd2qqd9y0p8p26rr9iv46g63kr5fx82x3pwhsrc\n\
NarSize: 128\n\
References: \n\
CA: text:sha256:04n4cpwi118ryf1qnqvqfqm8iqqn3m2zv04fbsbxv7hw9p28pp4z\n",
];

/// As cache.nixos.org had it in 2021.
pub(super) const HELLO: &str = "\
StorePath: /nix/store/w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10
URL: nar/15zk4zszw9lgkdkkwy7w11m5vag11n5dhv2i6hj308qpxczvdddx.nar.xz
Compression: xz
FileHash: sha256:15zk4zszw9lgkdkkwy7w11m5vag11n5dhv2i6hj308qpxczvdddx
FileSize: 41232
NarHash: sha256:1mi14cqk363wv368ffiiy01knardmnlyphi6h9xv6dkjz44hk30i
NarSize: 205968
References: 9df65igwjmf2wbw0gbrrgair6piqjgmi-glibc-2.31 w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10
Sig: cache.nixos.org-1:uP5KU8MCmyRnKGlN5oEv6xWJBI5EO/Pf5aFztZuLSz8BpCcZ1fdBnJkVXhBAlxkdm/CemsgQskhwvyd2yghTAg==
";

/// Path and content address of what `nix-store --add-fixed [--recursive] ALGORITHM` added.
pub(super) const ADDED: [(&str, &str); 8] = [
    (
        "7cngpdqdggi1qqh5z2cq1i9m7dj0c5w2-flat",
        "fixed:md5:4425hx5d1mc9y39llj4k4nm55i",
    ),
    (
        "w6b5y6vkvz8n60ldvkgm1jllmnd1l86a-flat",
        "fixed:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm",
    ),
    (
        "hrzh64qwa6kpxv4ik12aiyppb3r0njks-flat",
        "fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq",
    ),
    (
        "w8vnvqnnfgc8kcclchm2szwjkv93w0vs-flat",
        "fixed:sha512:0lrc0dwnvipqviibf7qfm1y492qvjwb1zhkcyi05cndmva1mr5gjcgrnz1x36djmk0sfg8djd2n0qv68vib2jg590mwznar9jcjphp7",
    ),
    (
        "jihr1hc81lvh81brn3gnw7mnh1kigcns-tree",
        "fixed:r:md5:57h8xlr1qma1fvyg6shbs5hns2",
    ),
    (
        "wkhhbvp8svvqnf7b61dp84lazkq2zjff-tree",
        "fixed:r:sha1:b86a4pzdh0lwqx3zfrxv840g71400grv",
    ),
    (
        "pjnm6gb3pjrsabmrxgyfr46is0dlsr5z-tree",
        "fixed:r:sha256:1qv1khxn086ficshdrhqgjwfyngq1r6ss68c0lbyz64dqq0rvgm5",
    ),
    (
        "yylm25g7mzi6xa0q84i7rbdpla3famhf-tree",
        "fixed:r:sha512:056ibmyypy60k03j7g6962j9w3m6hfhsxxpjzcyy5rj21nsfqaqsrkn1zr0xhm6qwbsgcyv16p99d74cml60jqgc2xs0m1b17d3zsqh",
    ),
];

/// The [`NARINFOS`], parsed, each with its store directory.
pub(super) fn narinfos() -> impl Iterator<Item = (StoreDir, Narinfo)> {
    NARINFOS.into_iter().map(|text| {
        let dir = if text.contains(OTHER_DIR) {
            OTHER_DIR
        } else {
            "/nix/store"
        };
        let dir = StoreDir::new(dir).unwrap();
        let narinfo = Narinfo::parse(&dir, text.as_bytes()).unwrap();
        (dir, narinfo)
    })
}

/// Any facts that a path can have.
pub(super) fn info() -> impl Strategy<Value = PathInfo> {
    let references = prop::collection::btree_set(store_path(), 0..5);
    let signatures = prop::collection::vec(signature(), 0..4);
    (
        store_path(),
        any::<[u8; 32]>(),
        1..=u64::MAX,
        references,
        prop::option::of(store_path()),
        signatures,
        prop::option::of(content_address()),
    )
        .prop_map(
            |(path, digest, nar_size, references, deriver, signatures, ca)| PathInfo {
                path,
                nar_hash: NarHash::from_digest(digest),
                nar_size,
                references: references.into_iter().collect(),
                deriver,
                signatures,
                ca,
            },
        )
}

/// Any content address, also of methods that we do not know.
pub(super) fn content_address() -> impl Strategy<Value = ContentAddress> {
    let algorithm = prop::sample::select(vec![
        HashAlgorithm::Md5,
        HashAlgorithm::Sha1,
        HashAlgorithm::Sha256,
        HashAlgorithm::Sha512,
    ]);
    prop_oneof![
        any::<[u8; 32]>().prop_map(ContentAddress::Text),
        (
            any::<bool>(),
            algorithm,
            prop::collection::vec(any::<u8>(), 64)
        )
            .prop_map(|(recursive, algorithm, mut digest)| {
                digest.truncate(algorithm.digest_bytes());
                ContentAddress::Fixed {
                    recursive,
                    algorithm,
                    digest,
                }
            }),
        "(fixed:git|nar|text:md5|fixed:r:blake3):[!-~]{0,60}"
            .prop_map(|text| ContentAddress::Unknown(text.into())),
    ]
}

fn store_path() -> impl Strategy<Value = StorePath> {
    "[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+_?=][0-9a-zA-Z+._?=-]{0,40}"
        .prop_map(|basename| StorePath::from_basename(&basename).unwrap())
}

fn signature() -> impl Strategy<Value = Signature> {
    ("[!-9;-~]{1,20}", any::<[u8; 64]>()).prop_map(|(name, bytes)| {
        let base64 = data_encoding::BASE64.encode(&bytes);
        Signature::parse(&format!("{name}:{base64}")).unwrap()
    })
}

/// [`SECRET_KEY`], parsed.
pub(super) fn secret_key() -> SecretKey {
    SecretKey::parse(SECRET_KEY).unwrap()
}
