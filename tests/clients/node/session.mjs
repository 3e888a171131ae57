// One session of the clients for Node: runs every case in turn and prints what came out of it as one JSON object.
// Arguments: the address the clients talk to, then (to watch and break things) the gateway's admin address and those
// of the emulated replicas; without these only the cases that one Ollama can answer are run.
import { Ollama } from 'ollama'
import OpenAI from 'openai'

const [url, admin, ...replicas] = process.argv.slice(2)
const native = new Ollama({ host: url })
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })

const CHAT = 'llama3.1:8b'
const THINKING = 'qwen3:8b'
const EMBEDDING = 'nomic-embed-text'
const SHORT = { num_predict: 12 }
const LONG = 100_000
const messages = [{ role: 'user', content: 'Why is the sky blue?' }]
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const tools = [{ type: 'function', function: { name: 'weather', description: 'The weather.', parameters } }]
const city = { type: 'object', properties: { name: { type: 'string' }, people: { type: 'integer' } } }

async function all(stream) {
  const pieces = []
  for await (const piece of await stream) pieces.push(piece)
  return pieces
}

async function json(address, options) {
  return (await fetch(address, { ...options, headers: { connection: 'close' } })).json()
}

async function total(counter) {
  const stats = await Promise.all(replicas.map((replica) => json(`${replica}/emulator/stats`)))
  return stats.reduce((sum, each) => sum + each[counter], 0)
}

async function fault(kind) {
  for (const replica of replicas) {
    await json(`${replica}/emulator/fault`, { method: 'POST', body: JSON.stringify({ kind, after: 3 }) })
  }
}

async function clearFaults() {
  for (const replica of replicas) await json(`${replica}/emulator/fault`, { method: 'DELETE' })
}

// Milliseconds until the replica has stopped and the gateway has nothing in flight, once `leave` has left a stream.
async function untilStopped(leave) {
  const before = await total('aborted')
  const error = await failure(leave)
  const left = performance.now()
  for (;;) {
    const requests = (await json(`${admin}/snapshot`)).requests
    const stopped = (await total('aborted')) === before + 1 && (await total('active_streams')) === 0
    const waited = performance.now() - left
    if (stopped && requests.in_flight === 0 && requests.queued === 0) return { waited, error }
    if (waited > 5000) throw new Error(`still running: ${JSON.stringify(requests)}`)
    await new Promise((wake) => setTimeout(wake, 5))
  }
}

// What a call throws, as data; null where it throws nothing.
async function failure(call) {
  try {
    await call()
    return null
  } catch (error) {
    return { name: error.name, message: error.message, status: error.status_code ?? error.status ?? null }
  }
}

// A stream in which a replica breaks: what was said before, and what was thrown.
async function broken(kind, start, said) {
  await fault(kind)
  const heard = []
  const error = await failure(async () => {
    for await (const piece of await start()) heard.push(said(piece))
  })
  await clearFaults()
  return { heard: heard.filter(Boolean), error }
}

async function leaving(stream, leave) {
  let pieces = 0
  for await (const piece of stream) if (piece && ++pieces === 3) leave(stream)
}

const anyReplica = {
  chat: () => native.chat({ model: CHAT, messages, options: SHORT }),
  stream: () => all(native.chat({ model: CHAT, messages, options: SHORT, stream: true })),
  tools: () => native.chat({ model: CHAT, messages, tools }),
  'tools, streamed': () => all(native.chat({ model: CHAT, messages, tools, stream: true })),
  thinking: () => native.chat({ model: THINKING, messages, think: true, options: SHORT }),
  format: () => native.chat({ model: CHAT, messages, format: city }),
  generate: () => native.generate({ model: CHAT, prompt: 'Once upon', options: SHORT }),
  'generate, streamed': () => all(native.generate({ model: CHAT, prompt: 'Once upon', options: SHORT, stream: true })),
  embed: () => native.embed({ model: EMBEDDING, input: ['a cow', 'a horse'] }),
  embeddings: () => native.embeddings({ model: EMBEDDING, prompt: 'a cow' }),
  list: () => native.list(),
  show: () => native.show({ model: CHAT }),
  version: () => native.version(),
  'unknown model': () => failure(() => native.chat({ model: 'cow', messages })),
  'unknown model, streamed': () => failure(() => native.chat({ model: 'cow', messages, stream: true })),
  'unknown model, embed': () => failure(() => native.embed({ model: 'cow', input: 'hi' })),
  'unknown model, show': () => failure(() => native.show({ model: 'cow' })),
  'unknown model, pull': () => failure(() => all(native.pull({ model: 'cow', stream: true }))),
  'openai chat': () => openai.chat.completions.create({ model: CHAT, messages, max_tokens: 12 }),
  'openai stream': () => all(openai.chat.completions.create({ model: CHAT, messages, max_tokens: 12, stream: true })),
  'openai tools': () => openai.chat.completions.create({ model: CHAT, messages, tools }),
  'openai tools, streamed': () => all(openai.chat.completions.create({ model: CHAT, messages, tools, stream: true })),
  'openai format': () => openai.chat.completions.create({
    model: CHAT, messages, response_format: { type: 'json_schema', json_schema: { name: 'city', schema: city } },
  }),
  'openai completions': () => openai.completions.create({ model: CHAT, prompt: 'Once upon', max_tokens: 12 }),
  'openai embeddings': () => openai.embeddings.create({ model: EMBEDDING, input: ['a cow', 'a horse'] }),
  'openai embeddings, numbers': () => openai.embeddings.create({
    model: EMBEDDING, input: 'a cow', encoding_format: 'float',
  }),
  'openai response': () => openai.responses.create({ model: CHAT, input: 'hi', max_output_tokens: 12 }),
  'openai response, streamed': async () => (await all(openai.responses.create({
    model: CHAT, input: 'hi', max_output_tokens: 12, stream: true,
  }))).map((event) => event.delta ?? event.type),
  'openai models': () => all(openai.models.list()),
  'openai model': () => openai.models.retrieve(CHAT),
  'openai unknown model': () => failure(() => openai.chat.completions.create({ model: 'cow', messages })),
  'openai unknown model, retrieved': () => failure(() => openai.models.retrieve('cow')),
}

const throughGateway = {
  ps: async () => (await native.ps()).models.map((model) => model.model),
  pull: async () => {
    const steps = await all(native.pull({ model: 'llama3.2:3b', stream: true }))
    const names = (await native.list()).models.map((model) => model.model)
    const { message } = await native.chat({ model: 'llama3.2:3b', messages, options: SHORT })
    return { statuses: steps.map((step) => step.status), listed: names.includes('llama3.2:3b'), said: message.content }
  },
  'copy, create, push, delete': async () => {
    await native.copy({ source: 'llama3.2:3b', destination: 'node-copy' })
    const created = await native.create({ model: 'node-made', from: 'node-copy', system: 'Be brief.' })
    const pushed = await all(native.push({ model: 'node-copy', stream: true }))
    const { message } = await native.chat({ model: 'node-made', messages, options: SHORT })
    for (const model of ['node-copy', 'node-made', 'llama3.2:3b']) await native.delete({ model })
    const names = (await native.list()).models.map((model) => model.model)
    const left = names.filter((name) => name.startsWith('node-') || name === 'llama3.2:3b')
    return { created: created.status, pushed: pushed.at(-1).status, said: message.content, left }
  },
  abort: () => untilStopped(async () => {
    const stream = await native.chat({ model: CHAT, messages, options: { num_predict: LONG }, stream: true })
    await leaving(stream, () => stream.abort())
  }),
  'abort all': () => untilStopped(async () => {
    const stream = await native.generate({ model: CHAT, prompt: 'hi', options: { num_predict: LONG }, stream: true })
    await leaving(stream, () => native.abort())
  }),
  'openai abort': () => untilStopped(async () => {
    const stream = await openai.chat.completions.create({ model: CHAT, messages, max_tokens: LONG, stream: true })
    await leaving(stream, () => stream.controller.abort())
  }),
  'openai abort by leaving the loop': () => untilStopped(async () => {
    const stream = await openai.chat.completions.create({ model: CHAT, messages, max_tokens: LONG, stream: true })
    for await (const piece of stream) if (piece) break
  }),
  'openai abort before the answer': () => untilStopped(async () => {
    const signal = AbortSignal.timeout(300)
    await openai.chat.completions.create({ model: CHAT, messages, max_tokens: LONG }, { signal })
  }),
  'replica of a request': async () => {
    const { response } = await openai.chat.completions.create({ model: CHAT, messages, max_tokens: 1 }).withResponse()
    return response.headers.get('x-corral-replica')
  },
}

for (const kind of ['end-without-done', 'error-mid-stream', 'reset-mid-stream', 'truncate']) {
  throughGateway[`broken: ${kind}`] = () => broken(
    kind, () => native.chat({ model: CHAT, messages, stream: true }), (piece) => piece.message.content,
  )
  throughGateway[`openai broken: ${kind}`] = () => broken(
    kind, () => openai.chat.completions.create({ model: CHAT, messages, stream: true }),
    (piece) => piece.choices[0].delta.content,
  )
}

const results = {}
for (const [name, run] of Object.entries(admin ? { ...anyReplica, ...throughGateway } : anyReplica)) {
  try {
    results[name] = { value: (await run()) ?? null }
  } catch (error) {
    results[name] = { failed: `${error.stack}` }
  }
}
process.stdout.write(JSON.stringify(results))
