//! An ACME server (RFC 8555): as much of it as issuing takes, with what a client could get wrong checked: addresses, nonces,
//! accounts, the order of steps, and the proof itself, looked at over a real connection (TLS-ALPN-01, RFC 8737). Signatures are
//! taken on trust: a real server looks at those (`make test-acme`).
use crate::{certificates::Authority, wire};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

/// The server; ends when dropped.
#[derive(Debug)]
pub struct AcmeServer {
    address: SocketAddr,
    /// Of its own address; and it is the one that issues, too.
    authority: Arc<Authority>,
    state: Arc<Mutex<State>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    ending: bool,
    next: u64,
    nonces: BTreeSet<String>,
    /// The thumbprint of each account's key.
    accounts: Vec<String>,
    orders: Vec<Order>,
    leads_to: BTreeMap<String, SocketAddr>,
    /// Since when, and for how long, in days.
    validity: (u64, i64),
}

#[derive(Debug)]
struct Order {
    names: Vec<Name>,
    certificate: Option<String>,
}

#[derive(Debug)]
struct Name {
    name: String,
    token: String,
    status: &'static str,
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    location: Option<String>,
    kind: &'static str,
    body: String,
}

impl AcmeServer {
    /// At this address, whose certificate the authority issues.
    ///
    /// # Panics
    /// If it is taken.
    pub fn start(address: SocketAddr, authority: Arc<Authority>) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("a port");
        let state = Arc::new(Mutex::new(State { validity: (1, 90), ..State::default() }));
        let tls = Arc::new(server_config(&authority));
        let hall = Hall { origin: format!("https://{address}"), authority: Arc::clone(&authority), state: Arc::clone(&state) };
        let serving = std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if hall.state().ending {
                    return;
                }
                // Whoever breaks off has its reasons.
                let _ = hall.serve(tcp, &tls);
            }
        });
        Self { address, authority, state, serving: Some(serving) }
    }

    /// Where it says what it offers.
    pub fn directory(&self) -> String {
        format!("https://{}/directory", self.address)
    }

    /// Where port 443 of a name leads.
    pub fn leads(&self, name: &str, to: SocketAddr) {
        self.state().leads_to.insert(name.to_owned(), to);
    }

    /// What is issued from now on is good for so long.
    pub fn issue_for(&self, since_days: u64, for_days: i64) {
        self.state().validity = (since_days, for_days);
    }

    /// Orders so far.
    pub fn orders(&self) -> usize {
        self.state().orders.len()
    }

    /// Accounts so far.
    pub fn accounts(&self) -> usize {
        self.state().accounts.len()
    }

    /// It was made anew, and knows nobody.
    pub fn forget_accounts(&self) {
        self.state().accounts.iter_mut().for_each(String::clear);
    }

    /// Who signs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

impl Drop for AcmeServer {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.ending = true;
        }
        // So that it looks up.
        let _ = TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

fn server_config(authority: &Authority) -> ServerConfig {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let (certificate, key) = authority.issue(&["127.0.0.1", "localhost"], 1, 30);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    config.with_no_client_auth().with_single_cert(chain, key).expect("a pair")
}

struct Hall {
    origin: String,
    authority: Arc<Authority>,
    state: Arc<Mutex<State>>,
}

impl Hall {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// One request a connection.
    fn serve(&self, tcp: TcpStream, tls: &Arc<ServerConfig>) -> io::Result<()> {
        tcp.set_read_timeout(Some(crate::limits::START_MAX))?;
        let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, tcp));
        let request = Request::read(&mut stream)?;
        let answer = self.answer(&request).unwrap_or_else(|(status, kind)| Answer {
            status,
            location: None,
            kind: "application/problem+json",
            body: json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "as a test wants it" }).to_string(),
        });
        let location = answer.location.map_or_else(String::new, |location| format!("Location: {location}\r\n"));
        let (nonce, length) = (self.nonce(), answer.body.len());
        let head = format!(
            "HTTP/1.1 {} -\r\nContent-Type: {}\r\nContent-Length: {length}\r\nReplay-Nonce: {nonce}\r\n{location}Connection: close\r\n\r\n",
            answer.status, answer.kind
        );
        let stream = stream.get_mut();
        stream.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(answer.body.as_bytes())?;
        }
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn nonce(&self) -> String {
        let mut state = self.state();
        state.next += 1;
        let nonce = format!("nonce-{}", state.next);
        state.nonces.insert(nonce.clone());
        nonce
    }

    fn answer(&self, request: &Request) -> Result<Answer, (u16, &'static str)> {
        let origin = &self.origin;
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/directory") => {
                let urls = ["newNonce", "newAccount", "newOrder"].map(|name| (name.to_owned(), json!(format!("{origin}/{name}"))));
                return Ok(Answer::json(200, &Value::Object(urls.into_iter().collect())));
            }
            ("HEAD", "/newNonce") => return Ok(Answer::json(200, &json!({}))),
            ("POST", _) => {}
            _ => return Err((404, "malformed")),
        }
        let (protected, payload) = self.opened(request)?;
        if request.path == "/newAccount" {
            return self.new_account(&protected, &payload);
        }
        let kid = protected["kid"].as_str().unwrap_or_default();
        let account = kid.strip_prefix(&format!("{origin}/account/")).and_then(|number| number.parse().ok());
        let thumbprint = account.and_then(|number: usize| self.state().accounts.get(number).cloned()).filter(|print| !print.is_empty());
        let thumbprint = thumbprint.ok_or((400, "accountDoesNotExist"))?;
        let parts: Vec<&str> = request.path.split('/').skip(1).collect();
        let number = |text: &str| text.parse::<usize>().map_err(|_| (404, "malformed"));
        match parts.as_slice() {
            ["newOrder"] => self.new_order(&payload),
            ["order", order] => self.order(number(order)?, 200),
            ["authorization", order, name] => self.authorization(number(order)?, number(name)?),
            ["challenge", order, name] => self.challenge(number(order)?, number(name)?, &thumbprint),
            ["finalize", order] => self.finalize(number(order)?, &payload),
            ["certificate", order] => {
                let state = self.state();
                let body = state.orders.get(number(order)?).and_then(|order| order.certificate.clone()).ok_or((404, "malformed"))?;
                Ok(Answer { status: 200, location: None, kind: "application/pem-certificate-chain", body })
            }
            _ => Err((404, "malformed")),
        }
    }

    /// What is said, by whom; every nonce serves once.
    fn opened(&self, request: &Request) -> Result<(Value, Value), (u16, &'static str)> {
        let jws: Value = serde_json::from_slice(&request.body).map_err(|_| (400, "malformed"))?;
        let part = |name: &str| {
            let decoded = jws[name].as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or((400, "malformed"))?;
            if decoded.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&decoded).map_err(|_| (400, "malformed")) }
        };
        let (protected, payload): (Value, Value) = (part("protected")?, part("payload")?);
        if protected["url"] != format!("{}{}", self.origin, request.path) || jws["signature"].as_str().is_none_or(str::is_empty) {
            return Err((400, "unauthorized"));
        }
        if !self.state().nonces.remove(protected["nonce"].as_str().unwrap_or_default()) {
            return Err((400, "badNonce"));
        }
        Ok((protected, payload))
    }

    fn new_account(&self, protected: &Value, payload: &Value) -> Result<Answer, (u16, &'static str)> {
        if payload["termsOfServiceAgreed"] != true {
            return Err((403, "userActionRequired"));
        }
        let word = |name: &str| protected["jwk"][name].as_str().unwrap_or_default();
        // RFC 7638: these members, in this order.
        let canonical = format!(r#"{{"crv":"{}","kty":"{}","x":"{}","y":"{}"}}"#, word("crv"), word("kty"), word("x"), word("y"));
        let mut state = self.state();
        state.accounts.push(URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes())));
        let location = format!("{}/account/{}", self.origin, state.accounts.len() - 1);
        Ok(Answer { location: Some(location), ..Answer::json(201, &json!({ "status": "valid" })) })
    }

    fn new_order(&self, payload: &Value) -> Result<Answer, (u16, &'static str)> {
        let names = payload["identifiers"].as_array().ok_or((400, "malformed"))?;
        let names = names.iter().filter_map(|name| name["value"].as_str().filter(|_| name["type"] == "dns"));
        let mut state = self.state();
        let number = state.orders.len();
        let names = names.map(|name| Name { name: name.to_owned(), token: format!("token-{number}-{name}"), status: "pending" }).collect();
        state.orders.push(Order { names, certificate: None });
        drop(state);
        self.order(number, 201)
    }

    fn order(&self, number: usize, status: u16) -> Result<Answer, (u16, &'static str)> {
        let (state, origin) = (self.state(), &self.origin);
        let order = state.orders.get(number).ok_or((404, "malformed"))?;
        let authorizations: Vec<String> = (0..order.names.len()).map(|name| format!("{origin}/authorization/{number}/{name}")).collect();
        let identifiers: Vec<Value> = order.names.iter().map(|name| json!({ "type": "dns", "value": name.name })).collect();
        let mut body = json!({
            "status": order.status(), "identifiers": identifiers, "authorizations": authorizations, "finalize": format!("{origin}/finalize/{number}"),
        });
        if order.certificate.is_some() {
            body["certificate"] = format!("{origin}/certificate/{number}").into();
        }
        Ok(Answer { location: Some(format!("{origin}/order/{number}")), ..Answer::json(status, &body) })
    }

    fn authorization(&self, order: usize, number: usize) -> Result<Answer, (u16, &'static str)> {
        let state = self.state();
        let name = state.orders.get(order).and_then(|order| order.names.get(number)).ok_or((404, "malformed"))?;
        let other = json!({ "type": "dns-01", "url": format!("{}/none", self.origin), "token": "other", "status": "pending" });
        let body = json!({
            "status": name.status,
            "identifier": { "type": "dns", "value": name.name },
            "challenges": [other, name.challenge(&format!("{}/challenge/{order}/{number}", self.origin))],
        });
        Ok(Answer::json(200, &body))
    }

    /// Looks at once.
    fn challenge(&self, order: usize, number: usize, thumbprint: &str) -> Result<Answer, (u16, &'static str)> {
        let find = |state: &State| {
            let name = state.orders.get(order)?.names.get(number)?;
            Some((name.name.clone(), format!("{}.{thumbprint}", name.token), state.leads_to.get(&name.name).copied()))
        };
        let (name, authorization, address) = find(&self.state()).ok_or((404, "malformed"))?;
        let proved = address.is_some_and(|address| proves(address, &name, &authorization).unwrap_or(false));
        let mut state = self.state();
        let name = state.orders.get_mut(order).and_then(|order| order.names.get_mut(number)).ok_or((404, "malformed"))?;
        name.status = if proved { "valid" } else { "invalid" };
        Ok(Answer::json(200, &name.challenge(&format!("{}/challenge/{order}/{number}", self.origin))))
    }

    fn finalize(&self, number: usize, payload: &Value) -> Result<Answer, (u16, &'static str)> {
        let request = payload["csr"].as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or((400, "badCSR"))?;
        let mut state = self.state();
        let (since, days) = state.validity;
        let order = state.orders.get_mut(number).ok_or((404, "malformed"))?;
        if order.status() != "ready" || !order.names.iter().all(|name| has_name(&request, &name.name)) {
            return Err((403, "orderNotReady"));
        }
        order.certificate = Some(format!("{}{}", self.authority.sign(&request, since, days), self.authority.certificate()));
        drop(state);
        self.order(number, 200)
    }
}

impl Order {
    fn status(&self) -> &'static str {
        let all = |status: &str| self.names.iter().all(|name| name.status == status);
        match () {
            () if self.certificate.is_some() => "valid",
            () if all("valid") => "ready",
            () if self.names.iter().any(|name| name.status == "invalid") => "invalid",
            () => "pending",
        }
    }
}

impl Name {
    fn challenge(&self, url: &str) -> Value {
        let mut challenge = json!({ "type": "tls-alpn-01", "url": url, "token": self.token, "status": self.status });
        if self.status == "invalid" {
            challenge["error"] = json!({ "type": "urn:ietf:params:acme:error:unauthorized", "detail": "no proof was shown there" });
        }
        challenge
    }
}

/// RFC 8737: whoever is there speaks that protocol for that name, and shows the digest in a critical extension.
fn proves(address: SocketAddr, name: &str, authorization: &str) -> io::Result<bool> {
    const EXTENSION: [u8; 17] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f, 0x01, 0x01, 0xff, 0x04, 0x22, 0x04, 0x20];
    let server_name = name.to_owned().try_into().map_err(io::Error::other)?;
    let (certificate, protocol) = wire::shown(address, server_name, &[b"acme-tls/1"])?;
    let proof = [&EXTENSION[..], &sha256(authorization.as_bytes())].concat();
    Ok(protocol.as_deref() == Some(b"acme-tls/1") && contains(&certificate, &proof) && has_name(&certificate, name))
}

/// Whether a name is among the subject's alternative ones.
fn has_name(der: &[u8], name: &str) -> bool {
    let length = u8::try_from(name.len()).expect("a short name");
    contains(der, &[&[0x82, length], name.as_bytes()].concat())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

impl Request {
    fn read(stream: &mut impl io::BufRead) -> io::Result<Self> {
        let mut first = String::new();
        stream.read_line(&mut first)?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok(Self { method, path, body })
    }
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, location: None, kind: "application/json", body: body.to_string() }
    }
}
