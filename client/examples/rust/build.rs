fn main() -> std::io::Result<()> {
    let mut config = prost_build::Config::new();
    config.enable_type_names(); // So that ErrorDetail is found in an Any.
    tonic_prost_build::configure().build_server(false).compile_with_config(
        config,
        &["adamant/v1/service.proto"],
        &["../../../proto"],
    )
}
