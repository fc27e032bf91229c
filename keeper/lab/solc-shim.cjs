#!/usr/bin/env node
'use strict'
// Speaks native solc's `--version` and `--standard-json` over the npm package in $SOLC_PACKAGE.
// The package's own solcjs prints a line before the JSON, which py-solc-x and forge cannot read.
const fs = require('fs')
const path = require('path')

const folder = process.env.SOLC_PACKAGE
const options = { search: [], input: 0, version: false, json: false }
for (let args = process.argv.slice(2), i = 0; i < args.length; i++) {
  if (args[i] === '--version') options.version = true
  else if (args[i] === '--standard-json') options.json = true
  else if (args[i] === '--base-path' || args[i] === '--include-path') options.search.push(args[++i])
  else if (args[i] === '--allow-paths') i++
  else if (!args[i].startsWith('-')) options.input = args[i]
}

function load () {
  const solc = require(path.join(folder, 'wrapper.js'))(require(path.join(folder, 'soljson.js')))
  process.removeAllListeners('uncaughtException') // soljson's would hide our own failures
  process.removeAllListeners('unhandledRejection')
  return solc
}

function version () {
  // Loading the compiler takes half a second and forge asks often, so the answer is kept beside it.
  const file = path.join(folder, '.version')
  try { return fs.readFileSync(file, 'utf8') } catch (error) { if (error.code !== 'ENOENT') throw error }
  const answer = load().version()
  fs.writeFileSync(`${file}.${process.pid}`, answer)
  fs.renameSync(`${file}.${process.pid}`, file)
  return answer
}

function find (unit) {
  for (const file of [...options.search.map(folder => path.join(folder, unit)), unit]) {
    if (fs.existsSync(file)) return { contents: fs.readFileSync(file, 'utf8') }
  }
  return { error: `File not found: ${unit}` }
}

let answer
if (options.version) answer = `solc, the solidity compiler commandline interface\nVersion: ${version()}\n`
else if (options.json) answer = load().compile(fs.readFileSync(options.input, 'utf8'), { import: find })
else {
  process.stderr.write('Only --version and --standard-json are understood.\n')
  process.exit(1)
}
for (let rest = Buffer.from(answer); rest.length;) { // a full pipe answers EAGAIN
  try { rest = rest.subarray(fs.writeSync(1, rest)) } catch (error) { if (error.code !== 'EAGAIN') throw error }
}
process.exit(0)
