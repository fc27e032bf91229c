// The signers' page. It computes no hash and decides nothing: the server reads, judges, recovers and proves.
// Whatever comes from files, the chain or a wallet is inserted as text.
"use strict";

const TOKEN = location.hash.slice(1);
const REASONS = ["EXPLOIT", "ORACLE", "VOLSPIKE", "KEYCOMP", "RPCFAIL", "DEPPAUSE", "LEGAL", "DRILL"];
const EVERY_MS = 4000;
const $ = (id) => document.getElementById(id);
const wallets = new Map(); // announced by EIP-6963, by uuid
let wallet = null, account = null; // the chosen one
let state = null, stateAt = 0; // the last answer, and when it came
let shown = null; // the open proposal
let busy = false, small = false;

// --- elements and calls -------------------------------------------------------------------------

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  return element;
}

// Replace what is in a place only if it changed, and leave the keyboard where it was.
function put(place, key, ...children) {
  const said = JSON.stringify(key);
  if (place.said === said) return;
  place.said = said;
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  if (focused && $(focused)) $(focused).focus();
}

function button(id, label, does, kind = "", off = false) {
  return h("button", { id, type: "button", class: kind, "aria-disabled": String(off), onclick: (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") !== "true") act(label, does);
  } }, label);
}

async function ask(name, given = {}) {
  let answer;
  try {
    answer = await fetch(`/api/${name}`, {
      method: "POST", headers: { "Content-Type": "application/json", "X-Keeper-Token": TOKEN }, body: JSON.stringify(given),
    });
  } catch {
    throw new Error("`keeper pause page` does not answer: is it still running?");
  }
  const said = await answer.json().catch(() => ({ error: `The server failed (${answer.status}); see its terminal.` }));
  if (!answer.ok) throw new Error(said.error);
  return said;
}

// One thing at a time; what came of it is said at the foot.
async function act(label, does) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  $("wrong").textContent = "";
  $("said").textContent = `${label}…`;
  try {
    $("said").textContent = (await does()) ?? "";
  } catch (error) {
    $("said").textContent = "";
    $("wrong").textContent = String(error?.message ?? error);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
    await look();
  }
}

// --- what is so now -----------------------------------------------------------------------------

async function look() {
  try {
    state = await ask("state");
    stateAt = performance.now();
  } catch (error) {
    state = { ...(state ?? { scopes: [], actions: [], files: [] }), status: null, why_not: error.message };
  }
  drawState();
  drawFiles();
  drawForms();
}

const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ") + " UTC";
const chainNow = () => state.status.at_s + (performance.now() - stateAt) / 1000;

function drawState() {
  const status = state.status;
  put($("place"), [state.safe, status?.block.number], state.safe
    ? `Chain ${state.chain_id}, Safe ${state.safe}${status ? `, block ${status.block.number}` : ""}` : "No configuration");
  const old = status && state.max_head_age_s && state.now_s - status.at_s > state.max_head_age_s;
  const warning = !status ? `THE STATE IS NOT KNOWN: ${state.why_not} Signing from a file still works.`
    : old ? `The newest block is from ${clock(status.at_s)}: what is shown may have changed since.`
    : status.halt_file_present ? "The local halt file is present: this keeper signs nothing." : "";
  put($("warning"), warning, warning);
  const scopes = status?.scopes ?? state.scopes.map((scope) => ({ scope, unknown: true }));
  put($("scopes"), scopes, scopes.map(card));
  tick();
}

function card(scope) {
  const name = scope.scope === "global" ? "Everything" : scope.scope;
  if (scope.unknown) return h("li", { class: "scope unknown" }, h("strong", {}, name, " ", h("span", { class: "now" }, "NOT KNOWN")));
  const everything = state.status.scopes[0].paused && scope.scope !== "global";
  return h("li", { class: scope.paused || everything ? "scope paused" : "scope", "data-scope": scope.scope },
    h("strong", {}, name, " ", h("span", { class: "now" }, scope.paused ? "PAUSED" : everything ? "STOPPED with everything" : "running")),
    scope.paused && h("p", {}, `since ${clock(scope.paused_at_s)}, reason ${scope.reason || "none given"}`),
    scope.unpause_at_s && h("span", { class: "clock", "data-until": scope.unpause_at_s }),
    scope.unpause_at_s && h("div", { class: "row" },
      button(`veto-${scope.scope}`, `Veto the restart of ${name}`, () => alone("veto", [scope.scope]), "danger"),
      button(`unpause-${scope.scope}`, `Restart ${name} now`, () => alone("unpause", [scope.scope]))),
    h("p", { class: "hint" }, `epoch ${scope.epoch}`));
}

function tick() {
  for (const place of document.querySelectorAll(".clock")) {
    if (!state?.status) continue;
    const left = Math.ceil(Number(place.dataset.until) - chainNow());
    const two = (number) => String(number).padStart(2, "0");
    place.textContent = left > 0
      ? `Restart possible in ${Math.floor(left / 3600)}:${two(Math.floor(left / 60) % 60)}:${two(left % 60)}`
      : "Restart is due: anybody may do it now";
  }
}

// --- wallets ------------------------------------------------------------------------------------

addEventListener("eip6963:announceProvider", (event) => {
  wallets.set(event.detail.info.uuid, event.detail);
  drawWallet();
});

function drawWallet() {
  const offered = [...wallets.values()];
  put($("wallet"), [offered.map((each) => each.info.uuid), account],
    account && h("p", {}, "Connected: ", h("code", { id: "account" }, account)),
    offered.length ? h("div", { class: "row" }, offered.map((each, at) =>
      button(`wallet-${at}`, `${account && each === wallet ? "Change account in" : "Connect"} ${each.info.name}`, () => connect(each))))
      : h("p", {}, "No wallet is in this browser. Files can be read and saved; sign elsewhere and paste the signature."));
}

async function connect(chosen) {
  const [first] = await chosen.provider.request({ method: "eth_requestAccounts" });
  if (!first) throw new Error("The wallet gave no account.");
  if (wallet !== chosen) chosen.provider.on?.("accountsChanged", ([now]) => {
    if (wallet === chosen) { account = now ?? null; drawWallet(); drawProposal(); }
  });
  wallet = chosen;
  account = first;
  drawWallet();
  drawProposal();
  return `Connected ${first}`;
}

function needWallet() {
  if (!account) throw new Error("Connect a wallet first.");
}

async function needChain(wanted) {
  const at = await wallet.provider.request({ method: "eth_chainId" });
  if (BigInt(at) !== BigInt(wanted)) throw new Error(`Your wallet is on chain ${BigInt(at)}: switch it to ${BigInt(wanted)}.`);
}

const walletSigns = (typed) =>
  wallet.provider.request({ method: "eth_signTypedData_v4", params: [account, JSON.stringify(typed)] });

// Send by the wallet what the server tried, then have the server prove what came of it.
async function walletSends(prepared, prove) {
  await needChain(prepared.chain_id);
  const { chain_id: _, ...tx } = prepared;
  const sent = await wallet.provider.request({ method: "eth_sendTransaction", params: [{ from: account, ...tx }] });
  $("said").textContent = `Sent as ${sent}. Waiting for the block, then reading the contracts…`;
  try {
    const proof = await prove(sent);
    return `Done in block ${proof.block.number}. Read from the contracts: ${proof.proved.join("; ") || "nothing lasting changes"}.`;
  } catch (error) {
    throw new Error(`Sent as ${sent}, and NOT PROVED: ${error.message}`);
  }
}

// --- guardians ----------------------------------------------------------------------------------

async function alone(action, words) {
  needWallet();
  const prepared = await ask("alone", { action, words, sender: account });
  return walletSends(prepared, (tx) => ask("alone-sent", { action, words, tx }));
}

const stopWords = () => [$("stop-scope").value, $("stop-reason").value, ...($("stop-incident").value ? [$("stop-incident").value] : [])];

async function signStop() {
  needWallet();
  const [scope, reason, incident] = stopWords();
  const asked = { scope, reason, incident: incident ?? null };
  const word = await ask("word", asked);
  put($("stopped"), word, h("h3", {}, `${word.what}. Compare with your wallet:`), hashes(word.hashes, { domain: "Domain hash", message: "Message hash" }));
  const signature = await walletSigns(word.typed_data);
  const kept = await ask("keep", { ...asked, issued_at_s: word.issued_at_s, guardian: account, signature });
  put($("stopped"), kept, h("p", {}, `${kept.document.what}, signed by ${kept.document.guardian}.`),
    h("div", { class: "row" }, button("stop-save", "Save the signed stop", () => save(kept.document.file, kept.text))),
    h("p", { class: "hint" }, "Anybody relays it with ", h("code", {}, `keeper pause guardian --relay ${kept.document.file}`)));
  return `Signed. It is in ${kept.document.file}; it stops nothing before somebody relays it.`;
}

// --- proposals ----------------------------------------------------------------------------------

function drawFiles() {
  const rows = state.files.map((file, at) => h("li", {}, file.error
    ? h("span", { class: "no" }, file.error)
    : h("button", { id: `file-${at}`, type: "button", onclick: () => act("Opening", () => open(file.file, true)) },
      file.note || "No note", h("small", {}, `${file.file} · nonce ${file.nonce} · ${file.signatures} signed`))));
  put($("files"), state.files, rows.length ? rows : h("li", { class: "hint" }, "None in this folder yet."));
}

async function open(file, jump = false) {
  shown = { ...(await ask("show", { file })), file, tried: null };
  $("open").hidden = false;
  drawProposal();
  if (jump) { $("open-title").focus(); $("open-title").scrollIntoView(); }
  return "";
}

function hashes(given, names) {
  return Object.entries(names).map(([name, label]) => [h("h3", {}, label),
    h("div", { class: "hash", "data-hash": given[name].hex }, given[name][small ? "trezor" : "ledger"].split(" ").slice(1).map((group) => h("span", {}, group)))]);
}

function drawProposal() {
  if (!shown) return;
  const it = shown.document, signed = it.signed, flags = it.red_flags;
  const meant = () => flags.length === 0 || $("meant")?.checked;
  const seen = () => ({ file: shown.file, hash: it.hashes.safe_tx.hex, meant: meant() ? flags.map((flag) => flag.what) : [] });
  const complete = it.threshold !== null && signed.length >= it.threshold;
  const you = (who) => account && who.toLowerCase() === account.toLowerCase() ? " (you)" : "";
  const letters = h("input", { id: "small", type: "checkbox", onchange: (event) => {
    small = event.target.checked;
    put($("hashes"), [small], hashes(it.hashes, NAMES));
  } });
  letters.checked = small;
  put($("proposal"), [it, shown.tried, account],
    h("p", { class: "hint" }, `${shown.file} · chain ${it.chain_id} · Safe ${it.safe} · nonce ${it.nonce}`,
      it.safe_nonce !== null && it.safe_nonce !== it.nonce ? ` · THE SAFE IS AT NONCE ${it.safe_nonce}` : ""),
    flags.length > 0 && h("div", { class: "flags", role: "group", "aria-label": "Red flags" },
      h("h3", {}, `${flags.length} RED FLAG${flags.length > 1 ? "S" : ""}`),
      h("ul", {}, flags.map((flag) => h("li", {}, flag.what)))),
    h("h3", {}, it.calls.length > 1 ? `What is signed: ${it.calls.length} calls, all or none` : "What is signed"),
    it.calls.map((call) => h("p", { class: "does" }, call.words)),
    it.note && [h("h3", {}, "Its note (nobody vouches for it)"), h("p", { id: "its-note" }, it.note)],
    it.unchecked.length > 0 && h("div", { class: "amber" }, h("strong", {}, "Not checked"), h("ul", {}, it.unchecked.map((what) => h("li", {}, what)))),
    it.rivals.length > 0 && h("div", { class: "amber" }, h("strong", {}, "Rivals: only one with this nonce can be executed"),
      h("ul", {}, it.rivals.map((rival) => h("li", {}, `${rival.file}: ${rival.note || "no note"}`)))),
    h("h3", {}, it.threshold === null ? `Signed: ${signed.length}, needed: not known` : `Signed: ${signed.length} of ${it.threshold} needed`),
    h("ul", { class: "people" },
      signed.map((one) => h("li", {}, h("span", { class: "yes" }, "signed "), h("code", {}, one.owner), you(one.owner))),
      (it.missing ?? []).map((who) => h("li", {}, h("span", { class: "no" }, "not yet "), h("code", {}, who), you(who)))),
    h("h3", {}, "Compare with your wallet, group by group"),
    h("label", {}, letters, "small letters, as Trezor shows them"),
    h("div", { id: "hashes" }, hashes(it.hashes, NAMES)),
    flags.length > 0 && h("div", { class: "flags" }, h("label", {}, h("input", { id: "meant", type: "checkbox", onchange: () => {
      for (const id of ["sign", "sign-pasted", "execute"]) $(id)?.setAttribute("aria-disabled", String(!meant() || (id === "execute" && !complete)));
    } }), `I have read ${flags.length > 1 ? `all ${flags.length} red flags` : "the red flag"} above, and every word of it is meant.`)),
    h("div", { class: "row" },
      button("sign", "Sign with the wallet", () => sign(seen()), complete ? "" : "main", flags.length > 0),
      button("try", "Try it", attempt),
      button("execute", "Execute", () => execute(seen()), complete ? "danger" : "", !complete || flags.length > 0),
      button("save", "Save the file", () => save(shown.file, shown.text))),
    shown.tried && h("div", { id: "tried", class: "amber" }, h("strong", {}, shown.tried.ok ? "It would work now." : "It would FAIL now."),
      h("ul", {}, shown.tried.causes.map((cause) => h("li", {}, cause)))),
    h("details", {}, h("summary", {}, "A signature from elsewhere"),
      h("label", {}, "Owner ", h("input", { id: "pasted-owner", autocomplete: "off", spellcheck: "false" })),
      h("label", {}, "Signature, 0x… ", h("input", { id: "pasted", autocomplete: "off", spellcheck: "false" })),
      button("sign-pasted", "Add it", () => add(seen(), $("pasted-owner").value.trim(), $("pasted").value.trim()), "", flags.length > 0)),
    h("details", {}, h("summary", {}, "Every field"),
      it.calls.map((call) => [h("h3", {}, `${call.contract ?? "UNKNOWN"} ${call.to}`), h("p", { class: "raw" }, h("code", {}, call.function ?? call.data)),
        h("ul", {}, Object.entries(call.arguments).map(([name, value]) => h("li", { class: "raw" }, h("code", {}, `${name}: ${value}`))))]),
      Object.entries(it.typed_data.message).map(([name, value]) => h("p", { class: "raw" }, h("code", {}, `${name}: ${value}`)))));
}

const NAMES = { domain: "Domain hash", message: "Message hash", safe_tx: "Transaction hash" };

async function sign(seen) {
  needWallet();
  await needChain(shown.document.chain_id);
  return add(seen, account, await walletSigns(shown.document.typed_data));
}

async function add(seen, owner, signature) {
  await ask("sign", { ...seen, owner, signature });
  await open(shown.file);
  return `The signature of ${owner} is in ${shown.file}.`;
}

async function attempt() {
  shown.tried = await ask("try", { file: shown.file });
  drawProposal();
  return shown.tried.ok ? "It would work now." : "It would fail now; see why above.";
}

async function execute(seen) {
  needWallet();
  const prepared = await ask("prepare", seen);
  const done = await walletSends(prepared, (tx) => ask("confirm", { file: shown.file, tx }));
  await open(shown.file);
  return done;
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  return `Saved ${name}.`;
}

// --- forms --------------------------------------------------------------------------------------

const options = (values) => values.map((value) => h("option", { value }, value));

function drawForms() {
  put($("stop-scope"), state.scopes, options(state.scopes));
  put($("stop-reason"), REASONS, options(REASONS));
  put($("action"), state.actions, state.actions.map((each) => h("option", { value: each.name }, `${each.name}: ${each.means}`)));
  drawWords();
}

function drawWords() {
  const takes = state.actions.find((each) => each.name === $("action").value)?.takes ?? "";
  put($("words"), [takes, state.scopes], takes.split(" ").filter(Boolean).map((word, at) => {
    const name = word.replace(/[[\]]/g, ""), optional = word.startsWith("[") ? [""] : [];
    const choices = { SCOPE: state.scopes, REASON: REASONS, "on|off": ["on", "off"] }[name];
    const attributes = { id: `word-${at}`, class: "word", autocomplete: "off" };
    return h("label", {}, `${name}${optional.length ? " (if any)" : ""} `,
      choices ? h("select", attributes, options([...optional, ...choices])) : h("input", { ...attributes, spellcheck: "false" }));
  }));
}

async function propose() {
  const words = [...document.querySelectorAll(".word")].map((word) => word.value.trim());
  while (words.at(-1) === "") words.pop();
  const nonce = $("nonce").value ? Number($("nonce").value) : null;
  const made = await ask("build", { action: $("action").value, words, nonce, note: $("note").value });
  await open(made.file, true);
  return `Proposed in ${made.file}. Check it, then sign.`;
}

async function load(file) {
  const loaded = await ask("load", { name: file.name, text: await file.text() });
  await open(loaded.file, true);
  return loaded.merged ? `Its signatures are now in ${loaded.file}.` : `Loaded ${loaded.file}.`;
}

const submits = (id, label, does) => $(id).addEventListener("submit", (event) => { event.preventDefault(); act(label, does); });
submits("stop", "Stopping", () => alone("pause", stopWords()));
submits("build", "Building", propose);
$("stop-sign").addEventListener("click", () => act("Signing a stop", signStop));
$("action").addEventListener("change", drawWords);
$("load").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) act("Loading", () => load(file)).then(() => { event.target.value = ""; });
});

dispatchEvent(new Event("eip6963:requestProvider"));
drawWallet();
look();
setInterval(tick, 500);
setInterval(() => { if (!busy) look(); }, EVERY_MS);
