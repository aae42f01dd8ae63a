// Portkey's gateway listens on every address of the machine and has no setting for it: hold it to the loopback.
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (first, ...rest) {
  const options = typeof first === "object" ? { ...first, host: "127.0.0.1" } : { port: Number(first), host: "127.0.0.1" };
  const announce = rest.find((argument) => typeof argument === "function");
  return listen.call(this, options, announce);
};
