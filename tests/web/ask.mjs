// Answers one request of the tests as JSON: {bundle, options, pictures: [{file, width, height, prompts, options, twice, first}], plant}. Errors
// come back as {error: {name, message}}, those of the engine and those of each picture.
import { readFileSync } from "node:fs";
import { Engine, runtimes } from "digseg";

const told = (error) => ({ error: { name: error.name, message: error.message } });
const request = JSON.parse(readFileSync(0, "utf8"));

// A runtime whose mask decoder answers wrongly, as a GPU's may.
function planted({ load, ...rest }) {
  return {
    ...rest,
    async load() {
      const ort = await load();
      const create = async (...given) => {
        const session = await ort.InferenceSession.create(...given);
        return new Proxy(session, {
          get(target, key) {
            if (key !== "run") return typeof target[key] === "function" ? target[key].bind(target) : target[key];
            return async (...feeds) => {
              const answer = await target.run(...feeds);
              if (answer.logits) answer.logits.data.reverse();
              return answer;
            };
          },
        });
      };
      return { env: ort.env, Tensor: ort.Tensor, InferenceSession: { create } };
    },
  };
}

async function answer() {
  const given = request.plant ? { runtimes: runtimes.map((each) => (request.plant.includes(each.name) ? planted(each) : each)) } : {};
  let engine;
  try {
    engine = await Engine.load(request.bundle, { ...request.options, ...given });
  } catch (error) {
    return told(error);
  }
  const results = [];
  for (const { file, width, height, prompts, options, twice, first } of request.pictures) {
    try {
      const picture = { data: new Uint8Array(readFileSync(file)), width, height, path: file };
      const asked = twice || first ? await engine.encode(picture, { size: options?.size }) : picture;
      if (twice) for (const prompt of prompts) await engine.segment(asked, [prompt], options);
      if (first) await engine.segment(asked, engine.vocabulary.length ? null : ["another question"]);
      const { size, ...rest } = options ?? {}, result = await engine.segment(asked, prompts, first ? rest : { size, ...rest });
      results.push({ ...result.record({ rle: true }), labels: Array.from(result.labelMap) });
    } catch (error) {
      results.push(told(error));
    }
  }
  const { backend, fallbacks, tried, model, vocabulary } = engine;
  await engine.close();
  return { backend, fallbacks, tried, model, vocabulary, results };
}

console.log(JSON.stringify(await answer()));
