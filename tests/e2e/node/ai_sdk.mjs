// One conversation of a user of the AI SDK: node ai_sdk.mjs <major> <base URL> <scenario> [options as JSON].
// Prints one line of JSON: what the scenario found.
import { z } from "zod";

const [major, baseURL, scenario, given = "{}"] = process.argv.slice(2);
const options = JSON.parse(given);
const { generateObject, generateText, Output, stepCountIs, streamText, streamObject, tool } = await import(`ai-${major}`);
const { createOpenAI } = await import(`@ai-sdk/openai-${major}`);

globalThis.AI_SDK_LOG_WARNINGS = false;

// What the two majors call differently.
const system = (text) => ({ [major === "6" ? "system" : "instructions"]: text });
const messagesOf = (result) => (major === "6" ? result.response.messages : result.responseMessages);

// Every body the SDK sends, so that a test can see that it still takes the road it is about.
const sent = [];
const openai = createOpenAI({
  baseURL,
  apiKey: "none",
  fetch: (url, init) => {
    if (init?.body) sent.push(JSON.parse(init.body));
    return fetch(url, init);
  },
});
const model = openai.responses("scripted");
const run = options.stream ? streamed : generated;

const TOLD = "text reasoningText finishReason usage steps warnings providerMetadata response responseMessages".split(" ");

async function generated(settings) {
  return told(await generateText({ model, ...settings }));
}

async function streamed(settings) {
  const errors = [];
  const result = streamText({ model, onError: ({ error }) => errors.push(error), ...settings });
  const parts = [];
  for await (const part of result.fullStream) parts.push(part);
  if (errors.length) throw Object.assign(errors[0], { parts: parts.map((part) => part.type) });
  const found = {};
  for (const name of TOLD) found[name] = await result[name];
  const deltas = parts.filter((part) => part.type === "text-delta").map((part) => part.text);
  return { ...told(found), deltas, parts: parts.map((part) => part.type) };
}

// What both ways tell, the earlier steps included.
function told(result) {
  return {
    text: result.text,
    reasoning: result.reasoningText,
    finishReason: result.finishReason,
    usage: result.usage,
    warnings: result.warnings ?? [],
    responseId: result.providerMetadata?.openai?.responseId,
    steps: result.steps.map((step) => step.content),
    messages: messagesOf(result),
  };
}

// What a user meets when a call fails.
function failure(error) {
  const cause = error.lastError ?? error;
  const { name, message, statusCode, isRetryable, responseHeaders, type, code, value } = cause;
  const shown = { name, message, statusCode, isRetryable, type, code, value, retryAfter: responseHeaders?.["retry-after"] };
  return { ...shown, attempts: error.errors?.length ?? 1, parts: error.parts };
}

const user = (content) => ({ role: "user", content });

// One turn for each question, the whole conversation in the client's hands.
async function converse(questions, settings = {}) {
  const messages = [];
  const turns = [];
  for (const question of questions) {
    messages.push(user(question));
    const turn = await run({ ...settings, messages });
    messages.push(...turn.messages);
    turns.push(turn);
  }
  return turns;
}

const tools = {
  weather: tool({
    description: "Tell the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => ({ city, degrees: city.length }),
  }),
};

const Recipe = z.object({ name: z.string(), steps: z.array(z.string()) });

const remote = (rest) => ({ mcp: openai.tools.mcp({ serverLabel: "test", serverUrl: options.mcp, ...rest }) });

const scenarios = {
  ask: () => run({ prompt: "Hi.", ...options.settings }),

  // Each piece goes out on a line of its own at the moment it comes in.
  async live() {
    for await (const text of streamText({ model, prompt: "Hi." }).textStream) console.log(text);
  },

  converse: () => converse(["One?", "Two?", "Three?"], options.settings),

  look: () => run({ messages: [user([{ type: "text", text: "What is it?" }, ...options.parts])] }),

  loop: () => converse(["Weather?", "And then?"], { tools, stopWhen: stepCountIs(4) }),

  async output() {
    const call = { model, prompt: "Cook.", output: Output.object({ schema: Recipe }) };
    if (!options.stream) return (await generateText(call)).output;
    const result = streamText(call);
    await result.consumeStream();
    return await result.output;
  },

  async object() {
    const call = { model, schema: Recipe, schemaName: "recipe", prompt: "Cook." };
    if (!options.stream) return (await generateObject(call)).object;
    const result = streamObject(call);
    for await (const _ of result.partialObjectStream);
    return await result.object;
  },

  async previous() {
    const first = await run({ prompt: "One?", ...system("Be brief.") });
    const previousResponseId = first.responseId;
    return [first, await run({ prompt: "Two?", providerOptions: { openai: { previousResponseId } } })];
  },

  async conversation() {
    const settings = { providerOptions: { openai: { conversation: options.conversation } } };
    return [await run({ prompt: "One?", ...settings }), await run({ prompt: "Two?", ...settings })];
  },

  mcp: () => converse(["Echo.", "And then?"], { tools: remote({ requireApproval: "never" }) }),

  async approval() {
    const settings = { tools: remote({ requireApproval: "always" }) };
    const messages = [user("Echo.")];
    const first = await run({ ...settings, messages });
    const asked = first.steps.flat().filter((part) => part.type === "tool-approval-request");
    const answers = asked.map(({ approvalId }) => ({
      type: "tool-approval-response",
      approvalId,
      approved: options.approved,
      providerExecuted: true,
    }));
    messages.push(...first.messages, { role: "tool", content: answers });
    const second = await run({ ...settings, messages });
    messages.push(...second.messages, user("And then?"));
    return [first, second, await run({ ...settings, messages })];
  },

  custom: () =>
    converse(["Query.", "And then?"], {
      tools: {
        sql: openai.tools.customTool({
          ...(major === "6" ? { name: "sql" } : {}),
          description: "Run SQL.",
          format: { type: "grammar", syntax: "regex", definition: "SELECT .+" },
          execute: async (input) => `rows of ${input}`,
        }),
      },
      stopWhen: stepCountIs(4),
    }),
};

const found = await scenarios[scenario]().catch((error) => ({ failure: failure(error) }));
console.log(JSON.stringify({ found, sent }));
