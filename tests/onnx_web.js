// Run an ONNX file of `sslam export` in the browsers' engine (WebAssembly), in node.
// node onnx_web.js MODEL.onnx SAMPLES.f32 OUTPUT: the first clip's output, as JSON.
const fs = require("fs");
const ort = require("onnxruntime-web");

async function main([model, samples, output]) {
  ort.env.wasm.numThreads = 1;
  const bytes = fs.readFileSync(samples);
  const speech = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(model)), {
    executionProviders: ["wasm"],
  });
  const results = await session.run({
    speech: new ort.Tensor("float32", speech, [1, speech.length]),
    speech_lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(speech.length)), [1]),
  });
  console.log(JSON.stringify(Array.from(results[output].data)));
}

main(process.argv.slice(2)).then(() => process.exit(0), (error) => {
  console.error(String(error));
  process.exit(1);
});
